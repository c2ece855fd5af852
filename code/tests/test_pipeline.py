"""The pipeline as data: order, dependencies, outputs; a run repairs itself when results of a stage were deleted."""

import shutil

import pytest

from epsam.config.schema import Config
from epsam.errors import StateError
from epsam.pipeline import EMBED, FINETUNE, INITIAL_MASKS, PREPROCESS, RETRAIN, STAGES, TRAIN_CLASSIFIER
from epsam.runs.reset import reset
from epsam.runs.runner import run_stage
from epsam.runs.stage import Stage, depending_on
from epsam.runtime.files import sha256, write_text
from epsam.workspace import Workspace
from tests.test_evaluation import copy, made  # noqa: F401  fixtures


def _run(config, workspace):
    for stage in STAGES:
        run_stage(STAGES, stage, config, workspace)


def _content(config, workspace):
    return {
        path: sha256(path)
        for stage in STAGES[:-1]  # the page holds times
        for path in (*stage.output_paths(config, workspace), *stage.recorded_paths(workspace))
        if path.is_file() and path.suffix != ".json"
    }


def test_stages_come_after_those_they_need_and_embed_before_the_initial_masks():
    for number, stage in enumerate(STAGES):
        assert all(STAGES.index(needed) < number for needed in stage.needs)
    assert STAGES.index(EMBED) < STAGES.index(INITIAL_MASKS)


def test_changing_the_classifier_does_not_touch_the_embeddings():
    assert EMBED not in depending_on(STAGES, TRAIN_CLASSIFIER)
    assert set(depending_on(STAGES, EMBED)) >= {FINETUNE, RETRAIN}


@pytest.mark.parametrize("stage", STAGES[1:], ids=lambda stage: stage.name)
def test_outputs_that_were_deleted_are_made_again(copy, stage):  # noqa: F811
    config, workspace = copy
    before = _content(config, workspace)
    for path in stage.output_paths(config, workspace):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _run(config, workspace)
    assert _content(config, workspace) == before
    assert all(path.exists() for path in stage.output_paths(config, workspace))


def test_patches_that_were_brought_and_deleted_are_asked_for_in_one_line(copy):  # noqa: F811
    config, workspace = copy
    shutil.rmtree(workspace.split("val") / "image")
    with pytest.raises(StateError, match="patches was '28 files.*is '22 files"):
        run_stage(STAGES, TRAIN_CLASSIFIER, config, workspace)


def test_a_stage_that_gives_other_files_makes_the_later_ones_run_again(copy, caplog):  # noqa: F811
    config, workspace = copy
    weights = workspace.decoder(0).read_bytes()
    shutil.rmtree(workspace.pseudo_labels(0))
    other = config.model_copy(update={"cam": config.cam.model_copy(update={"opening_px": 3})})
    with pytest.raises(StateError, match="cam.opening_px was"):
        _run(other, workspace)
    reset(STAGES, other, workspace, INITIAL_MASKS.name)
    with caplog.at_level("INFO", logger="epsam"):
        _run(other, workspace)
    assert "embed: done already" in caplog.text
    assert workspace.decoder(0).with_name(f"{workspace.name}_sam_pre_decoder.1.pth").read_bytes() == weights


def test_postprocessing_changes_pseudo_labels_and_evaluation_alone(copy, caplog):  # noqa: F811
    config, workspace = copy
    other = config.model_copy(update={"postprocess": config.postprocess.model_copy(update={"min_region_px": 0})})
    for stage in (PREPROCESS, TRAIN_CLASSIFIER, EMBED, INITIAL_MASKS, FINETUNE):
        with caplog.at_level("INFO", logger="epsam"):
            run_stage(STAGES, stage, other, workspace)
        assert f"{stage.name}: done already" in caplog.text
    with pytest.raises(StateError, match=r"stage retrain .* postprocess.min_region_px was 30, is 0"):
        run_stage(STAGES, RETRAIN, other, workspace)


def test_when_a_stage_gives_other_files_than_before_those_that_depend_on_it_run_again(tmp_path, caplog):
    calls = []

    def first(config, workspace, hardware):
        calls.append("first")
        write_text(workspace.run / "first.csv", f"made in call {len(calls)}")

    def second(config, workspace, hardware):
        calls.append("second")
        write_text(workspace.run / "second.csv", "made")

    made_of = {"outputs": ("runs/{name}/first.csv",), "files": ("runs/{name}/first.csv",), "needs_device": False}
    one = Stage("first", "write something", first, **made_of)
    two = Stage("second", "read it", second, needs=(one,), outputs=("runs/{name}/second.csv",), needs_device=False)
    config, workspace = Config(name="small"), Workspace(tmp_path, "small")
    for _ in range(2):
        for stage in (one, two):
            run_stage((one, two), stage, config, workspace)
    assert calls == ["first", "second"]
    (workspace.run / "first.csv").unlink()
    for stage in (one, two):
        run_stage((one, two), stage, config, workspace)
    assert calls == ["first", "second", "first", "second"]
    assert "first gave other files than before, so these stages run again: second" in caplog.text
