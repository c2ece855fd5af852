"""What is wrong with one slide or patch costs it alone: the others are predicted, and the table and last line say so."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epsam.errors import DataError, SlideError
from epsam.inference import predict_patches as patches
from epsam.inference.output import OUTPUTS
from epsam.inference.run import infer
from epsam.runtime.workers import DIED
from epsam.slides.reader import open_slide
from epsam.slides.remote import RemoteSlide
from tests.slide_factory import draw, spoil_tag, write_claiming, write_slide
from tests.test_inference_run import hardware, patch_folder, rows_of, settings, trained  # noqa: F401 fixtures

CRASHING = """
import os
class MultiResolutionImageReader:
    def open(self, path):
        if "crash" in path:
            os.abort()
        if "raise" in path:
            raise ValueError("cannot reshape")
"""


@pytest.fixture
def crashing(tmp_path) -> Path:
    """A folder with a module in ASAP's place that aborts the process or raises on some slides, and opens none."""
    folder = tmp_path / "asap"
    folder.mkdir()
    (folder / "multiresolutionimageinterface.py").write_text(CRASHING)
    return folder


def with_asap(settings, folder: Path, **changes):  # noqa: F811
    slides = settings.config.slides.model_copy(update={"asap_path": folder})
    return dataclasses.replace(settings, config=settings.config.model_copy(update={"slides": slides}), **changes)


def test_bad_slides_fail_and_the_others_are_predicted(settings, hardware, crashing, tmp_path, caplog):  # noqa: F811
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("crash", "raise", "good", "$x^$", "n" * 240, os.fsdecode(b"\xff")):
        write_slide(folder / f"{name}.tif", draw((200, 180), tissue=(20, 20, 180, 160)), levels=1)
    write_claiming(folder / "huge.tif")
    with pytest.raises(DataError, match=r"5 of 7 slides failed.*the others are done"):
        infer(with_asap(settings, crashing, test_dataset_dir=folder), hardware)
    rows = {row["slide"]: row for row in rows_of(settings.output_dir / "slides.csv")}
    reasons = {
        "crash": "the process that read it died",
        "raise": "ValueError: cannot reshape",
        "huge": "claims 4000000",
        "n" * 240: "240 bytes",
        "\\udcff": "not UTF-8",
    }
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(reasons)
    assert all(reason in rows[name]["reason"] for name, reason in reasons.items())
    for name in ("good", "$x^$"):
        assert rows[name]["status"] == "ok"
        assert all((settings.output_dir / (name + suffix)).is_file() for suffix in OUTPUTS)


def test_a_single_slide_whose_reader_crashes_is_one_line(settings, hardware, crashing, tmp_path):  # noqa: F811
    shutil.copy(settings.test_dataset_dir, tmp_path / "crash.tif")
    with pytest.raises(SlideError, match=r"crash\.tif: the process that read it died"):
        infer(with_asap(settings, crashing, test_dataset_dir=tmp_path / "crash.tif"), hardware)


def test_a_slide_that_aborts_openslide_costs_itself_alone(settings, hardware, tmp_path):  # noqa: F811
    folder = tmp_path / "slides"
    for name in ("a", "b", "spoilt"):
        write_slide(folder / f"{name}.tif", draw((200, 180), tissue=(20, 20, 180, 160)), levels=1)
    spoil_tag(folder / "spoilt.tif")
    with pytest.raises(DataError, match=r"1 of 3 slides failed \(spoilt\)"):
        infer(dataclasses.replace(settings, test_dataset_dir=folder), hardware)
    rows = {row["slide"]: row for row in rows_of(settings.output_dir / "slides.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {"a": "ok", "b": "ok", "spoilt": "failed"}
    assert f"{DIED} (exit status -6)" in rows["spoilt"]["reason"]


def test_a_slide_read_in_another_process_is_the_same(tmp_path):
    path = write_slide(tmp_path / "a.tif", draw(tumour=[(128, 112, 300, 260)]))
    ours = open_slide(path)
    with RemoteSlide(path) as theirs:
        assert (theirs.size, theirs.level_sizes, theirs.mpp, theirs.vendor, theirs.reader, theirs.origin) == (
            ours.size,
            ours.level_sizes,
            ours.mpp,
            ours.vendor,
            ours.reader,
            (0, 0),
        )
        for window in ((70, 50, 60, 40, 0), (-20, -20, 50, 50, 1), (700, 600, 200, 100, 0)):
            np.testing.assert_array_equal(theirs.read(*window), ours.read(*window))
        with pytest.raises(SlideError, match="no level 9"):
            theirs.read(0, 0, 1, 1, 9)
        theirs.handle()[0].kill()
        with pytest.raises(SlideError, match="the process that read it died"):
            theirs.read(0, 0, 10, 10)


def test_bad_patches_fail_and_the_others_are_predicted(settings, hardware, patch_folder, monkeypatch, caplog):  # noqa: F811
    images = patch_folder / "image"
    settings = dataclasses.replace(settings, test_dataset_dir=patch_folder)
    (images / "broken.png").write_bytes((images / "c_0.png").read_bytes()[:300])
    (images / "no_png.png").write_text("<html>")
    Image.new("1", (20000, 20000)).save(images / "bomb.png")
    (patch_folder / "mask" / "b_1.png").write_bytes(b"\x89PNG")
    real = patches.draw_overlay

    def draw_overlay(image, mask, truth):
        if truth is None:
            raise MemoryError
        return real(image, mask, truth)

    monkeypatch.setattr(patches, "draw_overlay", draw_overlay)
    with pytest.raises(DataError, match=r"5 of 6 patches failed.*the others are done"):
        infer(settings, hardware)
    rows = {row["patch"]: row for row in rows_of(settings.output_dir / "predictions.csv")}
    assert (rows["a_1"]["status"], rows["a_1"]["reason"]) == ("ok", "")
    assert rows["a_1"]["dice"]
    reasons = {
        "broken": "cannot be",
        "no_png": "a web page",
        "bomb": "too many",
        "b_1": "not a PNG",
        "c_0": "MemoryError",
    }
    assert {name: row["status"] for name, row in rows.items() if name != "a_1"} == dict.fromkeys(reasons, "failed")
    assert all(reason in rows[name]["reason"] for name, reason in reasons.items())
    monkeypatch.undo()
    with pytest.raises(DataError, match="4 of 6 patches failed"):  # c_0 is predicted now, the others are tried again
        infer(settings, hardware)


def test_a_full_disk_and_ctrl_c_stop_the_run(settings, hardware, patch_folder, monkeypatch):  # noqa: F811
    settings = dataclasses.replace(settings, test_dataset_dir=patch_folder)
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):

        def write_png(*_, error=error):
            raise error

        monkeypatch.setattr(patches, "write_png", write_png)
        with pytest.raises(type(error)):
            infer(settings, hardware)
    assert not (settings.output_dir / "predictions.csv").exists()
