"""Masks as annotations: values by group, any resolution, read into the same windows as outlines."""

import numpy as np
import pytest
import tifffile

from epsam.errors import AnnotationError
from epsam.runtime.files import write_png
from epsam.slides.annotation_file import load_annotation
from tests.slide_factory import GROUPS


def disc(size: int = 200) -> np.ndarray:
    y, x = np.mgrid[:size, : size + 30]
    return (np.hypot(x - 100, y - 90) < 60).astype(np.uint8) + (np.hypot(x - 100, y - 90) < 20)


@pytest.mark.parametrize("kind", ["tiles", "strips", "png"])
def test_masks_of_two_values_are_tumour_at_any_downsample(tmp_path, kind):
    true, path = disc() > 0, tmp_path / "mask"
    if kind == "png":
        write_png(tmp_path / "mask.png", true)
        (tmp_path / "mask.png").rename(path)
    else:
        tifffile.imwrite(
            path, true.astype(np.uint8), compression="lzw", **({"tile": (64, 64)} if kind == "tiles" else {})
        )
    a = load_annotation(path, GROUPS)
    np.testing.assert_array_equal(a.mask(5, 3, 150, 120), true[3:123, 5:155])
    assert a.fraction(5, 3, 150, 120) == pytest.approx(true[3:123, 5:155].mean())
    coarse = load_annotation(path, GROUPS, slide_size=(920, 800))
    large = true.repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(coarse.mask(7, 9, 600, 500), large[9:509, 7:607])
    assert coarse.fraction(np.array([7, 301]), np.array([9, 302]), 131, 77) == pytest.approx(
        [large[9:86, 7:138].mean(), large[302:379, 301:432].mean()]
    )
    assert coarse.bounds() == (41 * 4, 31 * 4, 160 * 4, 150 * 4)


@pytest.mark.parametrize("depth", [bool, np.uint8])
def test_a_mask_that_stores_white_as_0_is_read_as_it_looks(tmp_path, depth):
    white = (disc() > 0).astype(np.uint8) * 255
    stored = ~white if depth is np.uint8 else white == 0
    tifffile.imwrite(tmp_path / "m.tif", stored, photometric="miniswhite")
    a = load_annotation(tmp_path / "m.tif", GROUPS)
    np.testing.assert_array_equal(a.mask(0, 0, 230, 200), white > 0)


def test_classes_need_rules_that_name_their_values(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", disc(), tile=(64, 64))
    with pytest.raises(AnnotationError, match=r"m\.tif: no rule names the value 1, 2"):
        load_annotation(tmp_path / "m.tif", GROUPS)
    a = load_annotation(tmp_path / "m.tif", {"tumour": ["2"], "ignore": ["1"]})
    np.testing.assert_array_equal(a.mask(0, 0, 230, 200), disc() == 2)
    both = load_annotation(tmp_path / "m.tif", {"tumour": ["1", "2"]})
    np.testing.assert_array_equal(both.mask(0, 0, 230, 200), disc() > 0)


def test_masks_of_other_slides_pictures_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, disc(), tile=(64, 64))
    for size, reason in (((800, 230), "mask of another slide"), ((100, 90), "mask of another slide")):
        with pytest.raises(AnnotationError, match=reason):
            load_annotation(path, {"tumour": ["1", "2"]}, slide_size=size)
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    with pytest.raises(AnnotationError, match="3 channels"):
        load_annotation(path, GROUPS)
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8))
    write_png(tmp_path / "m.png", np.zeros((64, 64), bool))
    for empty in (path, tmp_path / "m.png"):
        with pytest.raises(AnnotationError, match="nothing in it is tumour"):
            load_annotation(empty, GROUPS)
    tifffile.imwrite(path, np.arange(4096).reshape(64, 64).astype(np.uint8))
    with pytest.raises(AnnotationError, match="255 values .*a soft border or from compression with loss"):
        load_annotation(path, GROUPS)
    path.write_bytes(b"II*\0" + b"\xff" * 100)
    with pytest.raises(AnnotationError, match=r"m\.tif"):
        load_annotation(path, GROUPS)
