"""Training that goes on from an earlier model: `init_from`."""

import shutil

import pytest
import torch
import yaml

from epsam.config.loading import load_config
from epsam.config.paths import settings_for_weights
from epsam.errors import CheckpointError, ConfigError, StateError
from epsam.models.initial import initial_model
from epsam.pipeline import PREPROCESS, STAGES, TRAIN_CLASSIFIER
from epsam.runs.runner import run_stage
from epsam.runtime.checkpoints import load_tensors, save_weights
from epsam.runtime.device import choose_hardware
from epsam.sam.checkpoint import decoder_weights, load_sam
from epsam.sam.session import SamSession
from epsam.student.network import build_student
from epsam.student.training import first_student
from epsam.workspace import Workspace
from tests.patch_factory import make_patches
from tests.tiny import TOP

SETTINGS = {
    "workers": 0,
    "profile": "cpu",
    "classifier": {"depth": 18, "high_frequency": False, "lr": 1e-12, "epochs": 1, "batch": 8},
    "cam": {"layer": "layer4"},
    "sam": {"model_type": "demo"},
}


def _config(top, name, **more):
    (top / f"{name}.yaml").write_text(yaml.safe_dump(SETTINGS | more))
    return load_config(top / f"{name}.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A top level with the model `first`: weights of a classifier, a decoder and a student, none trained long."""
    top = tmp_path_factory.mktemp("trained")
    config, workspace = _config(top, "first"), Workspace(top, "first")
    workspace.checkpoints.mkdir()
    shutil.copy(TOP / "checkpoints" / "sam_demo.pth", workspace.checkpoints)
    make_patches(workspace, {"train": 8, "val": 2, "test": 2})
    for stage in (PREPROCESS, TRAIN_CLASSIFIER):
        run_stage(STAGES, stage, config, workspace)
    decoder = decoder_weights(load_sam("demo", None, workspace.checkpoints))
    settings = settings_for_weights(config, None)
    save_weights(workspace.used_decoder, {name: 1.5 * tensor for name, tensor in decoder.items()}, settings)
    save_weights(workspace.student, build_student(config.classifier).state_dict(), settings)
    return top


@pytest.fixture
def top(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "top")
    make_patches(Workspace(tmp_path / "top", "second"), {"train": 8, "val": 2, "test": 2})
    return tmp_path / "top"


def _train(top, **more):
    config, workspace = _config(top, "second", **more), Workspace(top, "second")
    for stage in (PREPROCESS, TRAIN_CLASSIFIER):
        run_stage(STAGES, stage, config, workspace)
    return config, workspace


def test_classifier_decoder_and_student_start_from_the_earlier_model(top):
    first, (config, second) = Workspace(top, "first"), _train(top, init_from="first")
    torch.testing.assert_close(
        load_tensors(second.classifier)["conv1.weight"], load_tensors(first.classifier)["conv1.weight"]
    )
    session = SamSession(config, second, choose_hardware("cpu"))
    session.use_initial_decoder()
    torch.testing.assert_close(decoder_weights(session.sam), load_tensors(first.used_decoder))
    student = first_student(config, second)
    torch.testing.assert_close(dict(student.state_dict()), load_tensors(first.student))
    assert all(parameter.requires_grad for parameter in student.parameters())
    session.use_decoder(None)
    assert decoder_weights(session.sam).keys() == load_tensors(first.used_decoder).keys()
    (name, original), *_ = decoder_weights(session.sam).items()
    assert not torch.equal(original, load_tensors(first.used_decoder)[name]), "SAM untuned stays SAM untuned"


def test_another_model_to_start_from_restarts_the_training(top):
    _train(top, init_from="first")
    with pytest.raises(StateError, match=r"stage train-classifier was run with something else: init_from was 'first'"):
        _train(top)
    _train(top, init_from="first")  # as it was: nothing to do
    workspace = Workspace(top, "first")
    weights = {name: 2 * tensor for name, tensor in load_tensors(workspace.student).items()}
    save_weights(workspace.student, weights, settings_for_weights(load_config(top / "first.yaml"), None))
    with pytest.raises(StateError, match="stage train-classifier was run with something else: weights of init_from"):
        _train(top, init_from="first")


def test_the_model_may_be_a_run_a_folder_or_in_a_folder(top):
    def found(init_from):
        return initial_model(_config(top, "second", init_from=init_from), Workspace(top, "second")).decoder

    assert found("first") == top / "checkpoints" / "first_sam_decoder.pth"
    assert found("checkpoints/first") == top / "checkpoints" / "first_sam_decoder.pth"
    assert found(str(top / "checkpoints")) == top / "checkpoints" / "first_sam_decoder.pth"
    for end in ("resnet_adl", "sam_decoder"):
        (top / "checkpoints" / f"other_{end}.pth").touch()
    with pytest.raises(ConfigError, match=r"holds 2 models with a classifier and a decoder \(first, other\); name one"):
        found("checkpoints/")


def test_a_model_that_does_not_fit_is_refused_by_name(top):
    for settings, error, words in (
        ({"init_from": "frist"}, CheckpointError, "no model `frist` in .*did you mean `first`"),
        ({"init_from": "none.epsam"}, CheckpointError, r"none\.epsam: no such model file"),
        ({"init_from": "first", "sam": {}}, ConfigError, "trained with sam.model_type: demo, this run has vit_b"),
        (
            {"init_from": "first", "classifier": SETTINGS["classifier"] | {"depth": 34}},
            ConfigError,
            r"first_resnet_adl\.pth was trained with classifier.depth: 18, this run has 34; set it to the same",
        ),
    ):
        with pytest.raises(error, match=words):
            run_stage(STAGES, TRAIN_CLASSIFIER, _config(top, "second", **settings), _preprocessed(top, settings))
    with pytest.raises(ConfigError, match="is this run itself"):
        initial_model(_config(top, "first", init_from="first"), Workspace(top, "first"))
    (top / "checkpoints" / "first_resnet_adl.pth").unlink()
    with pytest.raises(CheckpointError, match="has no classifier to start from"):
        initial_model(_config(top, "second", init_from="first"), Workspace(top, "second"))


def _preprocessed(top, settings):
    workspace = Workspace(top, "second")
    run_stage(STAGES, PREPROCESS, _config(top, "second", **settings), workspace)
    return workspace
