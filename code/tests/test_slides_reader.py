"""Slides are read the same whatever wrote them: RGB, level-0 positions, white where there is nothing."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from epsam.errors import SlideError
from epsam.slides.overview import overview
from epsam.slides.reader import open_slide
from epsam.slides.slide import read_window
from tests.slide_factory import GLASS, TISSUE, draw, philips, spoil_tile, write_slide

WSI = Path(__file__).parents[3] / "shared" / "data" / "wsi"


@pytest.fixture
def image():
    return draw()


@pytest.fixture
def slide(tmp_path, image):
    return open_slide(write_slide(tmp_path / "a.tif", image, compression="lzw"), "openslide")


def test_pixels_are_those_written_in_rgb_order(slide, image):
    assert slide.size == (768, 640)
    assert slide.level_downsamples == (1, 2, 4)
    np.testing.assert_array_equal(slide.read(70, 50, 100, 90), image[50:140, 70:170])


def test_outside_is_white_on_every_side(slide, image):
    read = slide.read(-10, -20, 800, 700)
    assert read.shape == (700, 800, 3)
    np.testing.assert_array_equal(read[20:660, 10:778], image)
    read[20:660, 10:778] = 255
    assert (read == 255).all()
    assert (slide.read(5000, 5000, 7, 9) == 255).all()


def test_positions_are_level_0_at_every_level(slide, image):
    coarse = slide.read(64 * 4, 32 * 4, 20, 10, level=2)
    means = image[128:168, 256:336].reshape(10, 4, 20, 4, 3).mean((1, 3))
    assert np.abs(coarse - means).max() < 3
    corner = slide.read(-40, 600, 50, 40, level=2)
    assert (corner[:, :10] == 255).all()
    assert (corner[10:] == 255).all()
    assert np.abs(corner[:10, 10:].astype(int) - GLASS).max() < 8


def test_numpy_integers_are_taken_as_positions(slide, image):
    np.testing.assert_array_equal(slide.read(*np.array([70, 50, 8, 8])), image[50:58, 70:78])


def test_missing_tiles_are_white(tmp_path, image):
    slide = open_slide(write_slide(tmp_path / "sparse.tif", image, missing=[7]))
    read = slide.read(128, 128, 256, 128)
    assert (read[:, :128] == 255).all()
    assert np.abs(read[:, 128:].mean((0, 1)) - TISSUE).max() < 5


@pytest.mark.parametrize(
    ("mpp", "unit", "expected"),
    [
        (0.25, "CENTIMETER", 0.25),
        (0.25, "INCH", 0.25),
        (None, "CENTIMETER", None),
        (350, "CENTIMETER", None),
        (0.25, "NONE", None),
    ],
)
def test_resolution_is_um_or_none(tmp_path, image, mpp, unit, expected):
    slide = open_slide(write_slide(tmp_path / "a.tif", image, mpp=mpp, unit=unit), "openslide")
    assert slide.mpp == (expected and pytest.approx((expected, expected), rel=1e-4))


def test_pixels_that_are_not_square_have_no_resolution(tmp_path, image):
    path = write_slide(tmp_path / "a.tif", image)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["YResolution"].overwrite((20000, 1))
    assert open_slide(path).mpp is None


def test_a_slide_can_be_pickled_and_used_in_another_process(slide, image):
    slide.read(0, 0, 8, 8)
    again = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(again.read(70, 50, 100, 90), image[50:140, 70:170])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(slide.read, (70, 50, 100, 90)), image[50:140, 70:170])


def test_overview_is_the_slide_at_any_downsample(slide, image):
    for downsample in (4, 6, 16):
        small = overview(slide, downsample, block_px=64)
        assert small.shape == (-(-640 // downsample), -(-768 // downsample), 3)
        at = small[200 // downsample, 300 // downsample].astype(int)
        assert np.abs(at - TISSUE).max() < 8
        assert np.abs(small[0, 0].astype(int) - GLASS).max() < 8
    single = open_slide(write_slide(slide.path.with_name("single.tif"), image, levels=1))
    assert np.abs(overview(single, 16, 100).astype(int) - overview(slide, 16).astype(int)).max() < 12


def test_overview_of_a_window_is_that_part_of_the_whole(slide):
    whole = overview(slide, 4)
    part = overview(slide, 4, block_px=64, window=(80, 120, 200, 100))
    assert part.shape == (25, 50, 3)
    assert np.abs(part.astype(int) - whole[30:55, 20:70]).max() < 12


def test_window_at_another_resolution_covers_the_same_place(slide, image):
    window = read_window(slide, 100, 60, 128, 32)
    assert np.abs(window - image[60:188, 100:228].reshape(32, 4, 32, 4, 3).mean((1, 3))).max() < 4


def test_level_that_is_not_there_is_an_error(slide):
    with pytest.raises(SlideError, match="no level 3"):
        slide.read(0, 0, 8, 8, level=3)


@pytest.mark.parametrize("name", ["A.TIF", "with space.tif", "ünï 片.tiff"])
def test_names_do_not_matter(tmp_path, image, name):
    assert open_slide(write_slide(tmp_path / name, image)).size == (768, 640)


def test_tile_that_cannot_be_decoded_is_an_error_and_the_rest_stays_readable(tmp_path, image):
    slide = open_slide(spoil := write_slide(tmp_path / "a.tif", image, levels=3))
    spoil_tile(spoil, 7)
    with pytest.raises(SlideError, match=r"x=130 y=130"):
        slide.read(130, 130, 64, 64)
    assert np.abs(slide.read(300, 300, 8, 8).mean((0, 1)) - TISSUE).max() < 8


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"II*\0" + b"\1" * 400), "download it again"),
        (lambda p: tifffile.imwrite(p, np.zeros((64, 64, 3), np.uint8)), "must be tiled"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, make, reason):
    path = tmp_path / "slide.tif"
    make(path)
    with pytest.raises(SlideError, match=reason) as caught:
        open_slide(path)
    assert str(path) in str(caught.value)


def test_philips_tiff_with_missing_tiles(tmp_path, image):
    slide = open_slide(write_slide(tmp_path / "p.tif", image, mpp=None, missing=[1, 7], **philips()), "openslide")
    assert slide.vendor == "philips"
    assert slide.mpp == pytest.approx((0.25, 0.25))
    assert (slide.read(128, 128, 128, 128) == 255).all()
    assert np.abs(slide.read(256, 128, 128, 128).mean((0, 1)) - TISSUE).max() < 5


@pytest.mark.skipif(not WSI.is_dir(), reason="no real slides here")
@pytest.mark.parametrize(
    ("name", "size", "mpp"),
    [
        ("cmu-1-small-region.svs", (2220, 2967), 0.499),
        ("tcga-cr-7395-01a-01-ts1.svs", (4443, 3567), None),
        ("boxes.tiff", (300, 250), None),
    ],
)
def test_real_slides_equal_openslide(name, size, mpp):
    slide = open_slide(WSI / name, "openslide")
    assert slide.size == size
    assert slide.mpp == (mpp and pytest.approx((mpp, mpp), rel=1e-2))
    expected = openslide.OpenSlide(WSI / name).read_region((40, 30), 0, (120, 90)).convert("RGB")
    np.testing.assert_array_equal(slide.read(40, 30, 120, 90), np.asarray(expected))


@pytest.mark.skipif(not WSI.is_dir(), reason="no real slides here")
@pytest.mark.parametrize("name", ["broken.svs", "unreadable.svs", "unopenable.tiff", "striped_no_pyramid.tif"])
def test_broken_real_slides_are_refused(name):
    with pytest.raises(SlideError, match=name):
        open_slide(WSI / name)
