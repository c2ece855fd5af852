"""Slides of one run are at one resolution, and weights know at which they were trained."""

import pytest
import torch
from click.testing import CliRunner

from epsam.cli import cli
from epsam.config.paths import settings_for_weights
from epsam.config.schema import Config
from epsam.errors import CheckpointError, DataError
from epsam.inference.checkpoints import settings_of
from epsam.inference.resolution import model_mpp
from epsam.patches.resolution import patch_mpp
from epsam.runtime.checkpoints import save_weights
from epsam.runtime.files import write_csv
from epsam.runtime.sidecar import read_metadata, trained_mpp
from epsam.stages.preprocess import preprocess
from epsam.workspace import Workspace
from tests.slide_factory import draw, make_dataset, write_slide
from tests.test_slides_preprocess import config


@pytest.fixture
def ws(tmp_path):
    workspace = Workspace(tmp_path, "mine")
    make_dataset(workspace.dataset)
    return workspace


def test_slides_of_two_resolutions_are_an_error_that_proposes_the_coarser(ws):
    write_slide(ws.slides / "normal_002.tif", draw(seed=7), mpp=0.5)
    with pytest.raises(DataError, match=r"normal_002 0\.5.*patches\.target_mpp=0\.5") as caught:
        preprocess(config(), ws)
    assert "0.25 um/px" in str(caught.value)
    preprocess(config(patches={"size_px": 64, "target_mpp": 0.5}), ws)
    assert patch_mpp(ws) == pytest.approx(0.5)


LABELS = "slide,x,y,label,{column}\n" + "".join(
    f"tumor_001,{x},{y},{{label}},{{value}}\n".replace("{label}", str(int(x < 300)))
    for x in (128, 200, 400)
    for y in (128, 200)
)


@pytest.mark.parametrize(
    ("slides_csv", "labels_csv", "target", "expected"),
    [
        ("slide,mpp,split\ntumor_002,0.5,val\n", "", "null", "tumor_002 0.5"),
        ("", LABELS.format(column="width", value=128), "null", "tumor_001 0.5"),
        ("", LABELS.format(column="mpp", value=0.5), "null", "patches.target_mpp=0.5"),
        ("", LABELS.format(column="width", value=32), "null", "Give the windows of tumor_001 in labels.csv a width"),
        ("", LABELS.format(column="width", value=128), "0.25", "labels.csv gives windows that as patches"),
        ("slide,mpp,split\ntumor_001,0.125,train\n", LABELS.format(column="width", value=128), "null", ""),
        ("slide,mpp,split\ntumor_001,0.125,test\n", LABELS.format(column="width", value=64), "0.25", "tumor_001 0.125"),
    ],
)
def test_resolutions_of_tables_count_whatever_the_split(ws, slides_csv, labels_csv, target, expected):
    if slides_csv:
        ws.slide_table.write_text(slides_csv)
    if labels_csv:
        ws.labels_csv.write_text(labels_csv)
    settings = ws.root / "c.yaml"
    settings.write_text(config().model_dump_json())
    root = ["--config", str(settings), "--root", str(ws.root)]
    result = CliRunner().invoke(cli, ["preprocess", *root, f"patches.target_mpp={target}"])
    assert expected in str(result.exception or "")
    assert bool(result.exception) == bool(expected)


def test_a_table_that_contradicts_the_file_counts_and_is_said(ws, caplog):
    ws.slide_table.write_text("slide,mpp\ntumor_001,40\n")  # the objective's power, by mistake
    with pytest.raises(DataError, match=r"tumor_001 40"):
        preprocess(config(), ws)
    assert "slides.csv gives 40 um/px, which counts; its file says 0.25" in caplog.text


def test_slides_of_unknown_resolution_among_others_are_a_warning(ws, caplog):
    write_slide(ws.slides / "normal_002.tif", draw(seed=7), mpp=None)
    preprocess(config(), ws)
    assert "1 of 6 slides do not say their resolution" in caplog.text
    assert "normal_002" in caplog.text


def test_a_few_per_cent_between_scans_are_no_matter(ws):
    write_slide(ws.slides / "normal_002.tif", draw(seed=7), mpp=0.265)
    preprocess(config(), ws)
    assert patch_mpp(ws) == pytest.approx(0.25, rel=1e-3)


def test_patches_without_slides_have_no_known_resolution(ws):
    assert patch_mpp(ws) is None
    columns = ["slide", "status", "patch_mpp"]
    write_csv(ws.slides_csv, [dict.fromkeys(columns, "") | {"slide": "a", "status": "ok"}], columns)
    assert patch_mpp(ws) is None


@pytest.mark.parametrize("mpp", [0.25, None])
def test_the_resolution_lies_beside_the_weights(tmp_path, mpp):
    save_weights(tmp_path / "a.pth", {"x": torch.ones(1)}, {}, mpp=mpp)
    assert trained_mpp(read_metadata(tmp_path / "a.pth")) == mpp


@pytest.mark.parametrize("mpp", [1.0, None])
def test_target_mpp_says_nothing_of_patches_that_were_brought(tmp_path, mpp):
    """Weights of patches without slides, whose settings name a resolution to cut at."""
    trained = Config(name="mine", patches={"target_mpp": 1.0})
    save_weights(tmp_path / "a.pth", {"x": torch.ones(1)}, settings_for_weights(trained, mpp), mpp=mpp)
    assert model_mpp(settings_of([tmp_path / "a.pth"], None, ()).patches, tmp_path / "a.pth") == mpp


@pytest.mark.parametrize("mpp", ["0.25", -1, True, float("nan")])
def test_a_resolution_that_is_none_is_refused(mpp):
    with pytest.raises(CheckpointError, match="no resolution"):
        trained_mpp({"mpp": mpp})
