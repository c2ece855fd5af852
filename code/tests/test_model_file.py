"""A trained model as one file: packed, carried elsewhere, read back, and refused where it is none."""

import io
import json
import shutil
from email.message import Message
from http.client import BadStatusLine, IncompleteRead
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock
from urllib.error import HTTPError

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from epsam.classifier.building import build_classifier
from epsam.cli import cli
from epsam.config.loading import load_config
from epsam.config.paths import settings_for_weights
from epsam.demo.slides import make_demo
from epsam.errors import CheckpointError, EpsamError, StateError
from epsam.export_command import export_model
from epsam.inference.output import OUTPUTS
from epsam.models.find import find_model
from epsam.runtime import downloads
from epsam.runtime.checkpoints import copy_weights, load_tensors, save_weights
from epsam.runtime.files import sha256
from epsam.runtime.model_file import KEY, PackedWeights, parts_of, read_model_record
from epsam.sam.checkpoint import decoder_weights, load_sam
from epsam.sam.encoder import encoder_hash
from epsam.student.network import build_student
from tests.tiny import SETTINGS

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "sam_demo.pth"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a slide, the checkpoints of the run `tiny`, and its model in tiny.epsam."""
    top = tmp_path_factory.mktemp("project")
    make_demo(top / "dataset" / "tiny", tumour=1, normal=0, size_px=640, workers=1)
    (top / "tiny.yaml").write_text(SETTINGS)
    overrides = ("inference.classifier_probability=0", "inference.overlap=0", "cam.threshold=0.1", "cam.rotations=[0]")
    config = load_config(top / "tiny.yaml", (*overrides, "inference.min_focus_um2=125", "inference.threshold=0.3"))
    checkpoints = top / "checkpoints"
    checkpoints.mkdir()
    shutil.copy(SHIPPED, checkpoints)
    torch.manual_seed(0)
    settings, sam = settings_for_weights(config, None), load_sam("demo", SHIPPED)
    save_weights(checkpoints / "tiny_resnet_adl.pth", build_classifier(config.classifier).state_dict(), settings)
    save_weights(checkpoints / "tiny_student.pth", build_student(config.classifier).state_dict(), settings, mpp=0.5)
    save_weights(checkpoints / "tiny_sam_decoder.pth", decoder_weights(sam), settings, encoder_hash(sam), 0.5)
    export_model("tiny", top / "tiny.epsam", top)
    return top


def _predict(root, slide, model, output, *overrides):
    words = ["infer", str(slide), "--model", str(model), "--output", str(output), "--root", str(root), *overrides]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return {suffix: (output / f"tumor_001{suffix}").read_bytes() for suffix in OUTPUTS}


@pytest.mark.parametrize("route", ["student", "sam"])
def test_a_model_carried_elsewhere_predicts_the_same_bytes(project, tmp_path, route):
    slide, setting = project / "dataset/tiny/images/tumor_001.tif", f"inference.model={route}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    carried = Path(shutil.copy(project / "tiny.epsam", elsewhere / "carried.epsam"))
    here = _predict(project, slide, "tiny", tmp_path / "here", setting, "profile=cpu")
    there = _predict(elsewhere, slide, carried, tmp_path / "there", setting, "profile=cpu")
    assert there == here
    assert len(here[".geojson"]) > 100


def test_what_a_model_file_says(project, tmp_path):
    record = read_model_record(project / "tiny.epsam")
    assert parts_of(project / "tiny.epsam") == ["classifier", "decoder", "student", "sam"]
    assert (record.name, record.mpp, record.settings["classifier.depth"]) == ("tiny", 0.5, 18)
    assert "torch" in record.versions
    again = tmp_path / "again.epsam"
    export_model("tiny", again, project)
    assert sha256(again) == sha256(project / "tiny.epsam")
    export_model("tiny", again, project)
    again.write_bytes(b"mine")
    with pytest.raises(StateError, match="is another file"):
        export_model("tiny", again, project)
    assert again.read_bytes() == b"mine"
    with pytest.raises(EpsamError, match=r"ends in \.epsam"):
        export_model("tiny", tmp_path / "out.pth", project)


def test_a_student_alone_needs_no_sam(project, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    copy_weights(project / "checkpoints/tiny_student.pth", tmp_path / "checkpoints/alone_student.pth")
    export_model("alone", tmp_path / "alone.epsam", tmp_path)
    assert parts_of(tmp_path / "alone.epsam") == ["student"]
    assert find_model(str(tmp_path / "alone.epsam"), tmp_path).decoder is None


def _changed(project, file, change=None, record=None, **fields):
    """The model of the project with other tensors or another record."""
    tensors = load_file(project / "tiny.epsam")
    if change:
        change(tensors)
    said = read_model_record(project / "tiny.epsam").model_dump() | fields
    save_file(tensors, file, {KEY: json.dumps(said) if record is None else record})
    return str(file)


def _with_nan(tensors):
    tensors["student.last.bias"] = torch.full_like(tensors["student.last.bias"], float("nan"))


def test_files_that_are_no_models_are_refused_in_one_line(project, tmp_path):
    def refused(file, match):
        with pytest.raises(CheckpointError, match=match) as caught:
            find_model(str(file), tmp_path)
        assert "\n" not in str(caught.value)

    file = tmp_path / "x.epsam"
    refused(file, "no such model file")
    whole = (project / "tiny.epsam").read_bytes()
    for content in (b"", b"PK\x03\x04" * 9, whole[:-1], whole[:3000], (100).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        refused(file, r"is no model file")
    file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    refused(file, "is no model file .* larger than any")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    refused(file, "is a pointer of Git LFS")
    save_file({"a": torch.zeros(1)}, file)
    refused(file, "none of `epsam export-model`")
    refused(_changed(project, file, format=2), "is of format 2, this program reads 1")
    refused(_changed(project, file, record="[" * 100_000), "its record is not that of a model")
    refused(_changed(project, file, record="{}"), "is of format None")
    refused(_changed(project, file, mpp=-1.0), "its record is not that of a model .*mpp")
    refused(_changed(project, file, run="import os"), "its record is not that of a model .*run")
    refused(_changed(project, file, sam_sha256="0" * 64), "weights of SAM that this program does not know")
    refused(_changed(project, file, lambda tensors: tensors.update({"../x": torch.zeros(1)})), "is none of a model")
    refused(
        _changed(project, file, lambda t: t.update({"student.z": torch.zeros(1, dtype=torch.bool)})), "none of a model"
    )
    refused(_changed(project, file, lambda t: [t.pop(k) for k in list(t) if k[0] in "sd"]), "neither a student nor")


def test_weights_in_a_model_file_that_are_not_finite_or_not_its_own_are_refused(project, tmp_path):
    file = Path(_changed(project, tmp_path / "nan.epsam", _with_nan))
    with pytest.raises(
        CheckpointError, match=r"nan\.epsam \(student\): the entry last\.bias holds values that are not"
    ):
        load_tensors(PackedWeights(file, "student"))
    done = CliRunner().invoke(
        cli, ["infer", str(project / "dataset/tiny/images"), "--model", str(file), "--root", str(tmp_path)]
    )
    assert isinstance(done.exception, CheckpointError)
    settings = read_model_record(project / "tiny.epsam").settings | {
        "slides.asap_path": "/theirs",
        "classifier.depth": 34,
    }
    file = Path(_changed(project, tmp_path / "other.epsam", settings=settings))
    done = CliRunner().invoke(
        cli, ["infer", str(project / "dataset/tiny/images"), "--model", str(file), "--root", str(tmp_path)]
    )
    assert "not the weights of a student" in str(done.exception)


class _Answer(io.BytesIO):
    status = 200
    headers: ClassVar = {}


def test_a_model_by_its_address(project, tmp_path, monkeypatch):
    content = (project / "tiny.epsam").read_bytes()
    digest, address = sha256(project / "tiny.epsam"), "https://example.org/models/good.epsam"
    asked = []

    def serve(answer):
        monkeypatch.setattr(downloads, "_open_https", lambda request, timeout: (asked.append(1), _Answer(answer))[1])

    def refused(name, match):
        with pytest.raises(CheckpointError, match=match) as caught:
            find_model(name, tmp_path)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    serve(content)
    refused(f"{address}#sha256={'0' * 64}", "SHA-256 is .* should begin with 000")
    refused(f"{address}#md5=1", "after # there may be sha256=")
    refused("http://example.org/good.epsam", "begins with https://")
    refused("https://example.org/..%2Fgood.epsam", "ends in a plain name")
    serve(b"<html>sign in</html>")
    refused(address, "is a web page, not the file itself")
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000)
    serve(content)
    refused(address, "could not be fetched .*larger than 1000 bytes")
    monkeypatch.undo()

    def offline(*_, **__):
        raise OSError("Name or service not known")

    for answer in (HTTPError(address, 416, "range", Message(), None), BadStatusLine("zz"), IncompleteRead(b"x", 5)):
        monkeypatch.setattr(downloads, "_open_https", Mock(side_effect=answer))
        refused(address, "could not be fetched")
    monkeypatch.setattr(downloads, "_open_https", offline)
    refused(address, r"could not be fetched \(Name or service not known\).*put it at .*good-\w{8}\.epsam")
    serve(content)
    model = find_model(f"{address}#sha256={digest}", tmp_path)
    assert model.student is not None
    assert model.student.is_file()
    asked.clear()
    assert find_model(address, tmp_path) == model
    assert not asked, "what was fetched once is used"
    (file,) = tmp_path.glob("*")
    assert sha256(file) == digest
    with pytest.raises(CheckpointError, match="was fetched before, and its SHA-256 is another"):
        find_model(f"{address}#sha256={'0' * 64}", tmp_path)
