"""Slides are read at the resolution that the models were trained at, and refused where theirs is not known."""

import dataclasses
import json

import pytest

from epsam.errors import CheckpointError, DataError, SlideError, StateError
from epsam.inference.run import infer
from epsam.runtime.files import read_csv
from epsam.runtime.sidecar import sidecar_path
from tests.slide_factory import draw, write_slide
from tests.test_inference_run import hardware, settings, trained  # noqa: F401 fixtures

COLUMNS = ["slide", "status", "reason", "mpp_x"]


@pytest.fixture
def at_mpp(settings, tmp_path):  # noqa: F811
    """`at_mpp(value)`: settings whose decoder has that um/px beside it, for the slides of the folder `slides`."""
    (tmp_path / "slides").mkdir()

    def at_mpp(value, **changes):
        decoder = tmp_path / "decoder.pth"
        decoder.write_bytes(settings.sam_decoder_checkpoint.read_bytes())
        sidecar_path(decoder).write_text(json.dumps({"mpp": value}))
        changes = {"test_dataset_dir": tmp_path / "slides"} | changes
        return dataclasses.replace(settings, sam_decoder_checkpoint=decoder, **changes)

    return at_mpp


@pytest.fixture
def tiles(monkeypatch):
    """Side in level-0 px of the tiles of each slide that is predicted, by its name; nothing else is computed."""
    found = {}

    def lay(tissue, shape, side, overlap):
        raise DataError("far enough")

    from epsam.inference import predict_slide as module

    real = module.tile_px

    def tile_px(slide, *rest):
        found[slide.path.stem] = real(slide, *rest)
        return found[slide.path.stem]

    monkeypatch.setattr(module, "tile_px", tile_px)
    monkeypatch.setattr(module, "lay_grid", lay)
    return found


def slide(folder, name, mpp):
    return write_slide(folder / name, draw((200, 180), tissue=(20, 20, 180, 160)), levels=1, mpp=mpp)


def test_tiles_cover_what_a_patch_of_the_training_covers(at_mpp, hardware, tiles, tmp_path):  # noqa: F811
    for name, mpp in (("20x", 0.5), ("40x", 0.25), ("nearly", 0.52)):
        slide(tmp_path / "slides", f"{name}.tif", mpp)
    with pytest.raises(DataError, match="3 of 3 slides failed"):
        infer(at_mpp(0.5), hardware)
    assert tiles == {"20x": 128, "40x": 256, "nearly": 128}


@pytest.mark.parametrize(
    ("trained_at", "said"),
    [
        (0.25, "is used, but the checkpoints were trained at other um/px: decoder.pth at 0.25"),
        (None, "is used; the checkpoints do not say at which um/px they were trained"),
        (1.0, ""),
    ],
)
def test_a_setting_that_the_weights_do_not_confirm_counts_and_is_said(
    at_mpp,
    hardware,  # noqa: F811
    tiles,
    tmp_path,
    caplog,
    trained_at,
    said,
):
    slide(tmp_path / "slides", "a.tif", 0.25)
    weights = at_mpp(trained_at)
    patches = weights.config.patches.model_copy(update={"target_mpp": 1.0})
    with pytest.raises(DataError, match="far enough"):
        infer(dataclasses.replace(weights, config=weights.config.model_copy(update={"patches": patches})), hardware)
    assert tiles == {"a": 512}
    assert said in caplog.text
    assert ("patches.target_mpp=1 is used" in caplog.text) == bool(said)


def test_a_slide_without_resolution_is_refused_by_name_until_it_is_given(at_mpp, hardware, tmp_path):  # noqa: F811
    slide(tmp_path / "slides", "plain.tif", None)
    slide(tmp_path / "slides", "known.tif", 0.5)
    with pytest.raises(DataError, match=r"1 of 2 slides failed \(plain\)"):
        infer(at_mpp(0.5), hardware)
    rows = {row["slide"]: row for row in read_csv(tmp_path / "out" / "slides.csv", COLUMNS)}
    assert rows["known"]["status"] == "ok"
    assert "does not say its resolution, and the models were trained at 0.5 um/px" in rows["plain"]["reason"]
    assert "--mpp UM_PER_PX, or the column mpp of a slides.csv" in rows["plain"]["reason"]
    infer(at_mpp(0.5, mpp=0.25), hardware)
    rows = {row["slide"]: row for row in read_csv(tmp_path / "out" / "slides.csv", COLUMNS)}
    assert {name: float(row["mpp_x"]) for name, row in rows.items()} == {"known": 0.5, "plain": 0.25}


def test_slides_csv_gives_resolutions_and_excludes(at_mpp, hardware, tmp_path):  # noqa: F811
    for name in ("plain", "pen"):
        slide(tmp_path / "slides", f"{name}.tif", None)
    (tmp_path / "slides" / "slides.csv").write_text("slide,mpp,exclude\nPlain,0.25,\npen,,pen all over\n")
    infer(at_mpp(0.5), hardware)
    rows = {row["slide"]: row for row in read_csv(tmp_path / "out" / "slides.csv", COLUMNS)}
    assert float(rows["plain"]["mpp_x"]) == 0.25
    assert (rows["pen"]["status"], rows["pen"]["reason"]) == ("excluded", "by slides.csv: pen all over")
    assert not list((tmp_path / "out").glob("pen*"))
    (tmp_path / "slides" / "slides.csv").write_text("slide,mpp\nplain,0.5\n")
    (tmp_path / "slides" / "pen.tif").unlink()
    with pytest.raises(StateError, match=r"plain was made at 0.25 um/px, now .* gives 0.5 um/px; start over"):
        infer(at_mpp(0.5), hardware)


def test_a_slide_alone_takes_the_table_beside_the_folder_images(at_mpp, hardware, tiles, tmp_path):  # noqa: F811
    path = slide(tmp_path / "mine" / "images", "a.tif", None)
    with pytest.raises(SlideError, match="does not say its resolution"):
        infer(at_mpp(0.5, test_dataset_dir=path), hardware)
    row = read_csv(tmp_path / "out" / "slides.csv", COLUMNS)[0]
    assert (row["slide"], row["status"]) == ("a", "failed")
    (tmp_path / "mine" / "slides.csv").write_text("slide,mpp\na,1\n")
    with pytest.raises(DataError, match="far enough"):
        infer(at_mpp(0.5, test_dataset_dir=path), hardware)
    assert tiles == {"a": 64}


@pytest.mark.parametrize("value", ["fine", 0, -1, [0.5], 1e9, True])
def test_a_resolution_beside_the_weights_that_is_none_is_refused(at_mpp, hardware, tmp_path, value):  # noqa: F811
    slide(tmp_path / "slides", "a.tif", 0.5)
    with pytest.raises(CheckpointError, match=r"decoder.pth: .*json.* no resolution"):
        infer(at_mpp(value), hardware)
