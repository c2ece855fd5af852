"""Patches are judged by their pixels: whatever they are named, whatever format they have, larger ones tile by tile."""

import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile

from epsam.config.loading import load_config
from epsam.errors import DataError
from epsam.inference.run import InferenceSettings, infer
from epsam.inference.slide_folder import find_slides
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import read_csv, read_mask, write_png
from tests.dicom_factory import write_dicom
from tests.slide_factory import draw
from tests.tiny import SETTINGS

SIDE = 128
GLASS, TUMOUR = (240, 240, 240), (90, 40, 130)


def picture(width=SIDE, height=SIDE, tumour=(0, 0, 0, 0)):
    """RGB with a box x0, y0, x1, y1 that the models below take for tumour."""
    image = np.full((height, width, 3), GLASS, np.uint8)
    x0, y0, x1, y1 = tumour
    image[y0:y1, x0:x1] = TUMOUR
    return image


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "patches" / "image").mkdir(parents=True)
    return tmp_path / "patches"


@pytest.fixture
def run(tmp_path, folder, monkeypatch):
    """`run()` predicts the folder by models that see tumour where pixels are dark; gives predictions.csv by patch."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    config = load_config(tmp_path / "tiny.yaml")

    def segment(images, names):
        assert all(image.shape == (SIDE, SIDE, 3) for image in images)
        return (images[..., 0] < 150).astype(np.float32)

    models = SimpleNamespace(
        config=config,
        hardware=choose_hardware("cpu"),
        uses_classifier=True,
        usual_overlap=0.5,
        classify=lambda images, names: (images[..., 0] < 150).any(axis=(1, 2)).astype(np.float32),
        segment=segment,
        masks=lambda images, names: segment(images, names) > 0.5,
    )
    monkeypatch.setattr("epsam.inference.run.load_models", lambda *_, **__: models)
    for name in ("resnet", "decoder"):
        (tmp_path / f"{name}.pth").write_bytes(b"weights")

    def run():
        weights = (tmp_path / "resnet.pth", None, tmp_path / "decoder.pth")
        infer(InferenceSettings(folder, *weights, tmp_path / "out", config), models.hardware)
        return {
            row["patch"]: row for row in read_csv(tmp_path / "out" / "predictions.csv", ["patch", "status", "reason"])
        }

    return run


def test_a_picture_larger_than_a_patch_is_tiled_and_not_stretched(folder, run, tmp_path):
    box = (200, 150, 420, 260)
    write_png(folder / "image" / "large.png", picture(775, 522, box))
    write_png(folder / "image" / "patch.png", picture())
    write_png(folder / "image" / "strip.png", picture(SIDE, 700))
    rows = run()
    mask = read_mask(tmp_path / "out" / "mask" / "large.png")
    assert mask.shape == (522, 775)
    np.testing.assert_array_equal(mask, picture(775, 522, box)[..., 0] < 150)
    assert float(rows["large"]["tumour_fraction"]) == pytest.approx(mask.mean(), abs=1e-4)
    assert (rows["large"]["segmented"], rows["patch"]["segmented"], rows["strip"]["segmented"]) == ("1", "0", "0")


def test_a_picture_smaller_than_a_patch_fails_by_name(folder, run, tmp_path):
    write_png(folder / "image" / "small.png", picture(SIDE - 1, 400))
    write_png(folder / "image" / "patch.png", picture())
    with pytest.raises(DataError, match=r"1 of 2 patches failed \(small\)"):
        run()
    rows = {row["patch"]: row for row in read_csv(tmp_path / "out" / "predictions.csv", ["patch", "status", "reason"])}
    assert "127 x 400 px, but the models were trained on patches of 128 x 128 px" in rows["small"]["reason"]
    assert rows["patch"]["status"] == "ok"


def test_a_name_says_nothing_of_the_label_unless_there_is_a_mask(folder, run):
    for name in ("patch_1", "known_1"):
        write_png(folder / "image" / f"{name}.png", picture())
    write_png(folder / "image" / "tumour_0.png", picture(tumour=(10, 10, 60, 60)))
    write_png(folder / "mask" / "known_1.png", picture(tumour=(10, 10, 60, 60))[..., 0] < 150)
    rows = run()
    assert {name: row["segmented"] for name, row in rows.items()} == {"patch_1": "0", "known_1": "1", "tumour_0": "1"}
    assert rows["patch_1"]["dice"] == rows["tumour_0"]["dice"] == ""
    assert float(rows["known_1"]["dice"]) == pytest.approx(0, abs=1e-5)


def test_the_numbers_of_a_series_are_no_labels(folder, run):
    truth = picture(tumour=(10, 10, 60, 60))[..., 0] < 150
    for number in range(3):
        write_png(folder / "image" / f"patch_{number}.png", picture())
        write_png(folder / "mask" / f"patch_{number}.png", truth)
    assert [row["segmented"] for row in run().values()] == ["0", "0", "0"]


def test_png_jpeg_and_tiff_of_any_case_are_patches_and_other_files_are_named(folder, run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    image = picture(tumour=(10, 10, 60, 60))
    for name in ("a.PNG", "b.jpg", "b.JPEG", "c.tumour.png"):
        cv2.imwrite(str(folder / "image" / name), image[..., ::-1])
    tifffile.imwrite(folder / "image" / "d.TIF", image, photometric="rgb")
    (folder / "image" / "labels.csv").write_text("patch,label\n")
    (folder / "image" / "Thumbs.db").write_text("")
    tifffile.imwrite(tmp_path / "mask.tif", (image[..., 0] < 150).astype(np.uint8))
    (folder / "mask").mkdir()
    (folder / "masks").mkdir()
    (tmp_path / "mask.tif").rename(folder / "mask" / "a.tif")
    rows = run()
    assert set(rows) == {"a", "b.jpg", "b.JPEG", "c.tumour", "d"}
    assert all((tmp_path / "out" / "mask" / f"{name}.png").is_file() for name in rows)
    assert float(rows["a"]["dice"]) == 1
    assert "2 of 7 entries end in none of .png, .jpg" in caplog.text
    assert "Thumbs.db, labels.csv" in caplog.text
    assert "true masks lie in mask/; not used: masks" in caplog.text


def test_slides_in_subfolders_are_found_and_named_apart(tmp_path, caplog):
    for name in ("one.svs", "gdc-1/two.svs", "a/x.svs", "b/x.svs", ".cache/no.svs", "a/notes.txt", "a/y.ome.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a slide")
    (tmp_path / "c").symlink_to(tmp_path / ".cache")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "not mounted")  # fails by name when it is opened
    found = {name: path.relative_to(tmp_path).as_posix() for name, path in find_slides(tmp_path).items()}
    assert found == {
        "one": "one.svs",
        "two": "gdc-1/two.svs",
        "a_x.svs": "a/x.svs",
        "b_x.svs": "b/x.svs",
        "y": "a/y.ome.tif",
        "no": "c/no.svs",
        "gone": "gone.svs",
    }
    assert "are no slides" not in caplog.text
    for name in ("a.xml", "two.svs.part", "three.qptiff"):
        (tmp_path / "a" / name).write_text("")
    find_slides(tmp_path)
    assert "2 files are no slides by the ends of their names and are not used: a/three.qptiff, a/two.svs" in caplog.text


def test_the_files_of_a_dicom_series_are_one_slide(tmp_path):
    write_dicom(tmp_path, ["level-0.dcm", "level-1.dcm"], draw())
    assert set(find_slides(tmp_path)) == {"level-0"}
    # A shell makes of `folder/*.dcm` all files by name.
    assert set(find_slides(*sorted(tmp_path.glob("*.dcm")))) == {"level-0"}
