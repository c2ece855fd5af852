"""Tiles decoded beside OpenSlide give OpenSlide's pixels, and what they cannot give OpenSlide gives."""

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from epsam.errors import SlideError
from epsam.slides.reader import open_slide
from tests.slide_factory import draw, philips, write_leica, write_slide


def is_fast(slide) -> bool:
    return slide.handle().tiles is not None


def by_openslide(path, x, y, width, height, level=0) -> np.ndarray:
    return np.asarray(openslide.OpenSlide(path).read_region((x, y), level, (width, height)).convert("RGB"))


def positions(seed, count=40):
    return np.random.default_rng(seed).integers((0, 0), (768 - 150, 640 - 130), (count, 2)).tolist()


@pytest.mark.parametrize(
    "write",
    [
        lambda p, i: write_slide(p, i),
        lambda p, i: write_slide(p, i, tile=256, description="Aperio Image Library v1 |AppMag = 40|MPP = 0.25"),
        lambda p, i: tifffile.imwrite(
            p, i, tile=(128, 64), photometric="rgb", compression="jpeg", compressionargs={"outcolorspace": "rgb"}
        ),
        lambda p, i: tifffile.imwrite(
            p, i, tile=(128, 128), photometric="ycbcr", subsampling=(1, 1), compression="jpeg"
        ),
    ],
)
def test_pixels_equal_openslides_to_the_bit(tmp_path, write):
    path = tmp_path / "a.tif"
    write(path, cv2.GaussianBlur(draw(seed=3), (3, 3), 0))
    slide = open_slide(path, "openslide")
    assert is_fast(slide)
    for x, y in positions(0):
        np.testing.assert_array_equal(slide.read(x, y, 150, 130), by_openslide(path, x, y, 150, 130))
    for level in range(1, len(slide.level_sizes)):
        scale = 2**level
        for x, y in positions(level, 8):
            x, y = x // scale * scale, y // scale * scale
            np.testing.assert_array_equal(slide.read(x, y, 30, 20, level), by_openslide(path, x, y, 30, 20, level))


def test_off_the_grid_of_a_level_all_readers_round_to_its_nearest_pixel(tmp_path):
    image = draw()
    fast = open_slide(write_slide(tmp_path / "a.tif", image), "openslide")
    slow = open_slide(write_slide(tmp_path / "b.tif", image, compression="lzw"), "openslide")
    assert is_fast(fast)
    assert not is_fast(slow)
    for slide in (fast, slow):
        for x, y in ((401, 203), (403, 202), (402, 199)):
            nearest = slide.read(4 * round(x / 4), 4 * round(y / 4), 30, 20, 2)
            np.testing.assert_array_equal(slide.read(x, y, 30, 20, 2), nearest)


def test_a_missing_tile_is_left_to_openslide(tmp_path):
    path = write_slide(tmp_path / "a.tif", draw(), missing=[7])
    slide = open_slide(path, "openslide")
    assert is_fast(slide)
    read = slide.read(128, 128, 256, 128)
    assert (read[:, :128] == 255).all()
    np.testing.assert_array_equal(read[:, 128:], by_openslide(path, 256, 128, 128, 128))


@pytest.mark.parametrize("kind", ["other pixels", "ICC profile", "bounds", "philips", "lzw"])
def test_what_is_not_understood_is_openslides(tmp_path, kind, monkeypatch):
    path = tmp_path / "a.tif"
    if kind == "bounds":
        write_leica(path.with_suffix(".scn"), draw(), (100, 100), (2000, 2000))
        path = path.with_suffix(".scn")
    elif kind == "philips":
        write_slide(path, draw(), mpp=None, **philips())
    elif kind == "ICC profile":
        tifffile.imwrite(
            path, draw(), tile=(128, 128), photometric="rgb", compression="jpeg", iccprofile=b"\0" * 128, metadata=None
        )
    elif kind == "lzw":
        write_slide(path, draw(), compression="lzw")
    else:
        write_slide(path, draw())
        import epsam.slides.tiff_tiles as module

        real = module._decode_jpeg

        def one_level_brighter(page, data):
            tile = real(page, data).copy()
            tile[3, 3, 0] ^= 1
            return tile

        monkeypatch.setattr(module, "_decode_jpeg", one_level_brighter)
    slide = open_slide(path, "openslide")
    assert not is_fast(slide)
    x, y = (120, 130) if kind == "bounds" else (70, 50)
    np.testing.assert_array_equal(slide.read(x, y, 60, 60), by_openslide(path, x, y, 60, 60))


@pytest.mark.parametrize("seed", range(12))
def test_damage_in_a_tile_is_an_error_where_it_is_one_for_openslide(tmp_path, seed):
    path = write_slide(tmp_path / "a.tif", draw(), levels=1)
    slide = open_slide(path, "openslide")
    assert is_fast(slide)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[7], tiff.pages[0].databytecounts[7]
    rng = np.random.default_rng(seed)
    start = int(rng.integers(count - 60))
    damage = [bytes(count - start), b"\xff" * (count - start), rng.bytes(60)][seed % 3]
    with path.open("r+b") as stream:
        stream.seek(offset + start)
        stream.write(damage)
    try:
        expected = by_openslide(path, 130, 130, 64, 64)
    except openslide.OpenSlideError:
        with pytest.raises(SlideError, match="x=130 y=130"):
            slide.read(130, 130, 64, 64)
    else:
        np.testing.assert_array_equal(slide.read(130, 130, 64, 64), expected)
    np.testing.assert_array_equal(slide.read(300, 300, 64, 64), by_openslide(path, 300, 300, 64, 64))


def test_decoded_tiles_are_kept_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("epsam.slides.tiff_tiles.CACHE_BYTES", 3 * 128 * 128 * 3)
    path = write_slide(tmp_path / "a.tif", draw())
    slide = open_slide(path, "openslide")
    np.testing.assert_array_equal(slide.read(0, 0, 768, 640), by_openslide(path, 0, 0, 768, 640))
    assert len(slide.handle().tiles._cache) == 3
