"""Slides of one run are at one resolution, and weights know at which they were trained."""

import pytest
import torch

from epsam.errors import CheckpointError, DataError
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


@pytest.mark.parametrize("mpp", ["0.25", -1, True, float("nan")])
def test_a_resolution_that_is_none_is_refused(mpp):
    with pytest.raises(CheckpointError, match="no resolution"):
        trained_mpp({"mpp": mpp})
