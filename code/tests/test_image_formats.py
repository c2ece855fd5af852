"""Patches as JPEG and TIFF, beside PNG."""

import cv2
import numpy as np
import pytest
import tifffile

from epsam.errors import DataError
from epsam.patches.extraction import write_stored_png
from epsam.runtime.files import read_image, read_mask

RGB = np.full((20, 30, 3), (200, 120, 180), np.uint8)


def test_jpeg_and_tiff_are_read_as_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), RGB[..., ::-1])
    tifffile.imwrite(tmp_path / "b.tif", RGB, photometric="rgb", compression="deflate")
    tifffile.imwrite(tmp_path / "c.tif", np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "d.tif", RGB.astype(np.uint16) * 257, photometric="rgb")
    four = np.dstack([RGB, np.zeros((20, 30), np.uint8)])
    tifffile.imwrite(tmp_path / "e.tif", four, photometric="rgb", extrasamples=["unspecified"])
    for name in ("a.jpg", "b.tif", "c.tif", "d.tif", "e.tif"):
        image = read_image(tmp_path / name)
        assert image.shape == RGB.shape
        assert np.abs(image.astype(int) - RGB).max() <= 3, name
    tifffile.imwrite(tmp_path / "mask.tif", RGB[..., 0] * 0 + 255)
    assert read_mask(tmp_path / "mask.tif").all()


def test_damaged_or_huge_jpeg_and_tiff_are_refused_with_their_path(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), RGB)
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[:30])
    place = whole.index(b"\xff\xc0")
    (tmp_path / "huge.jpg").write_bytes(whole[: place + 5] + b"\xff\xff\xff\xff" + whole[place + 9 :])
    (tmp_path / "b.tif").write_bytes(b"II*\0" + bytes(40))
    tifffile.imwrite(tmp_path / "float.tif", RGB.astype(np.float32), photometric="rgb")
    for name in ("a.jpg", "huge.jpg", "b.tif", "float.tif"):
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("photometric", ["cielab", "ycbcr", "separated", "palette"])
def test_colours_that_are_not_rgb_are_refused_not_taken_for_rgb(tmp_path, photometric):
    pixels = np.dstack([RGB, RGB[..., :1]]) if photometric == "separated" else RGB
    options = {"colormap": np.zeros((3, 256), np.uint16)} if photometric == "palette" else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0] if options else pixels, photometric=photometric, **options)
    with pytest.raises(DataError, match=f"a.tif: .*stored as {photometric.upper()}; save it in RGB"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_of_which_a_camera_used_12_are_no_black_patch(tmp_path, name):
    deep = RGB.astype(np.uint16) << 4
    if name == "a.png":
        cv2.imwrite(str(tmp_path / name), deep)
    else:
        tifffile.imwrite(tmp_path / name, deep, photometric="rgb")
    with pytest.raises(DataError, match=f"{name}: 16 bits a channel, of which 12 are used"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_a_mask_of_one_bit_is_read(tmp_path, photometric):
    tumour = np.zeros((20, 30), bool)
    tumour[:5] = True
    tifffile.imwrite(tmp_path / "a.tif", tumour ^ (photometric == "miniswhite"), photometric=photometric)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), tumour)


@pytest.mark.parametrize("shape", [(1, 1), (771, 28), (40, 600), (3, 30_000)])  # less than a block, just one, several
def test_patches_are_cut_into_png_that_holds_their_pixels(shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    write_stored_png(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
