"""Through ASAP, of any version, slides read as they do through OpenSlide."""

import multiprocessing
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from epsam.errors import SlideError
from epsam.slides.asap import MODULE
from epsam.slides.openslide import OpenSlideSlide
from epsam.slides.overview import overview
from epsam.slides.reader import open_slide
from tests.slide_factory import draw, philips, spoil_tile, write_slide

WSI = Path(__file__).parents[3] / "shared" / "data" / "wsi"


@pytest.fixture(params=["2.2", "1.9"])
def asap(request, tmp_path, monkeypatch):
    """A folder that holds a module which behaves as ASAP's."""
    folder = tmp_path / "ASAP" / "bin"
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("asap_stand_in.py"), folder / f"{MODULE}.py")
    if request.param == "1.9":
        monkeypatch.setenv("ASAP_STAND_IN_OLD", "1")
    yield folder
    sys.modules.pop(MODULE, None)


@pytest.fixture
def path(tmp_path):
    return write_slide(tmp_path / "a.tif", draw())


def test_auto_takes_asap_where_its_folder_is_named_and_openslide_elsewhere(asap, path):
    assert open_slide(path, "auto", asap).reader == "asap"
    sys.modules.pop(MODULE)
    assert open_slide(path, "auto").reader == "openslide"


def test_asap_on_the_path_is_found(asap, path, monkeypatch):
    monkeypatch.syspath_prepend(asap)
    assert open_slide(path).reader == "asap"


def test_asap_that_is_not_there_is_named_with_what_to_do(path):
    with pytest.raises(SlideError, match="slides.asap_path"):
        open_slide(path, "asap")


def test_module_of_another_python_is_said_and_openslide_reads(tmp_path, path, caplog):
    (tmp_path / f"{MODULE}.py").write_text("raise ImportError('DLL load failed: module use of python38.dll')")
    assert open_slide(path, "auto", tmp_path).reader == "openslide"
    assert "python38" in caplog.text


def test_coarser_levels_are_chosen_as_with_openslide(asap, path):
    ours, theirs = open_slide(path, "asap", asap), open_slide(path, "openslide")
    assert [ours.level_for(d) for d in (0.5, 1, 1.9, 3.9, 4, 99)] == [0, 0, 0, 1, 2, 2]
    for downsample in (3, 4, 10):
        np.testing.assert_array_equal(overview(ours, downsample), overview(theirs, downsample))


def test_same_answers_as_openslide(asap, path):
    ours, theirs = open_slide(path, "asap", asap), open_slide(path, "openslide")
    assert ours.size == theirs.size
    assert ours.level_downsamples == theirs.level_downsamples
    assert ours.mpp == pytest.approx(theirs.mpp)
    assert ours.vendor == theirs.vendor
    assert ours.reader_version
    for where in [(70, 50, 100, 90, 0), (-30, -20, 900, 700, 0), (700, 600, 90, 90, 1), (-64, 560, 60, 50, 2)]:
        np.testing.assert_array_equal(ours.read(*where), theirs.read(*where))
    np.testing.assert_array_equal(ours.read(*np.array([70, 50, 9, 9])), theirs.read(70, 50, 9, 9))


@pytest.mark.parametrize(
    ("mpp", "unit", "expected"),
    [(0.25, "CENTIMETER", 0.25), (0.25, "INCH", 0.25), (None, "CENTIMETER", None), (0.25, "NONE", None)],
)
def test_resolution_heeds_the_unit_that_asap_ignores(asap, tmp_path, mpp, unit, expected):
    path = write_slide(tmp_path / "b.tif", draw(), mpp=mpp, unit=unit)
    assert open_slide(path, "asap", asap).mpp == (expected and pytest.approx((expected,) * 2, rel=1e-4))


def test_missing_tiles_are_white(asap, tmp_path):
    slide = open_slide(write_slide(tmp_path / "b.tif", draw(), missing=[7]), "asap", asap)
    assert (slide.read(128, 128, 128, 128) == 255).all()


def test_philips_slides_which_asap_leaves_to_openslide_read_the_same(asap, tmp_path):
    path = write_slide(tmp_path / "b.tif", draw(), mpp=None, missing=[7], **philips())
    ours, theirs = open_slide(path, "asap", asap), open_slide(path, "openslide")
    assert ours.mpp == theirs.mpp == pytest.approx((0.25, 0.25))
    assert ours.vendor == "philips"
    for where in [(70, 50, 300, 200, 0), (-30, -20, 900, 700, 0), (-64, 560, 60, 50, 2)]:
        np.testing.assert_array_equal(ours.read(*where), theirs.read(*where))


@pytest.mark.skipif(not WSI.is_dir(), reason="no real slides here")
def test_slide_without_resolution_which_asap_leaves_to_openslide(asap):
    assert open_slide(WSI / "tcga-cr-7395-01a-01-ts1.svs", "asap", asap).mpp is None


@pytest.mark.parametrize("compression", ["jpeg", "lzw"])
def test_colours_are_in_order_whatever_the_compression(asap, tmp_path, compression):
    path = write_slide(tmp_path / "b.tif", draw(), compression=compression)
    np.testing.assert_array_equal(
        open_slide(path, "asap", asap).read(70, 50, 60, 60), open_slide(path, "openslide").read(70, 50, 60, 60)
    )


@pytest.mark.parametrize(
    ("kind", "reader", "levels"), [("one wide level", "openslide", 1), ("levels in SubIFDs", "tifffile", 2)]
)
def test_tiffs_that_asap_refuses_go_to_another_reader(asap, tmp_path, kind, reader, levels):
    path = tmp_path / "b.tif"
    if kind == "one wide level":
        write_slide(path, np.full((128, 4096, 3), 200, np.uint8), levels=1)
    else:
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(draw(), tile=(128, 128), photometric="rgb", subifds=1, metadata=None)
            tiff.write(draw()[::2, ::2], tile=(128, 128), photometric="rgb", metadata=None)
    with pytest.raises(SlideError, match=r"slides\.reader=openslide"):
        open_slide(path, "asap", asap)
    slide = open_slide(path, "auto", asap)
    assert (slide.reader, len(slide.level_sizes)) == (reader, levels)


def test_a_macro_among_the_levels_is_left_out(asap, tmp_path):
    image = draw()
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        for level, pixels in enumerate(
            (image, image[::2, ::2], np.full((100, 300, 3), 200, np.uint8), image[::8, ::8])
        ):
            tiff.write(
                np.ascontiguousarray(pixels),
                tile=(128, 128),
                photometric="rgb",
                subfiletype=int(level > 0),
                metadata=None,
            )
    slide = open_slide(tmp_path / "b.tif", "asap", asap)
    assert slide.level_sizes == ((768, 640), (384, 320), (96, 80))
    np.testing.assert_array_equal(slide.read(80, 80, 60, 50, level=2), image[80:480:8, 80:560:8])


def test_black_in_the_slide_stays_black(asap, tmp_path):
    image = draw()
    image[200:400, 200:400] = 0
    slide = open_slide(write_slide(tmp_path / "b.tif", image, compression="lzw"), "asap", asap)
    np.testing.assert_array_equal(slide.read(150, 150, 100, 100), image[150:250, 150:250])


def test_tile_that_asap_paints_black_is_an_error(asap, path):
    slide = open_slide(path, "asap", asap)
    spoil_tile(path, 7)
    with pytest.raises(SlideError, match="cannot be decoded"):
        slide.read(130, 130, 64, 64)


def test_a_tiff_that_is_cut_off_is_refused(asap, path):
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        end = max(tiff.pages[2].dataoffsets) + 10
    path.write_bytes(content[:end])
    with pytest.raises(SlideError, match="cut off, the last"):
        open_slide(path, "asap", asap)


def test_black_is_not_believed_where_openslide_refuses(asap, tmp_path, monkeypatch):
    image = draw()
    image[100:200, 100:200] = 0
    slide = open_slide(write_slide(tmp_path / "b.tif", image, compression="lzw"), "asap", asap)

    def refuse(path):
        raise SlideError(f"{path}: damaged")

    monkeypatch.setattr("epsam.slides.asap.OpenSlideSlide", refuse)
    assert slide.read(220, 50, 60, 60).any()
    with pytest.raises(SlideError, match="ASAP gives black"):
        slide.read(110, 110, 60, 60)


@pytest.mark.parametrize("hidden", [[0, 2], [0], [2]])
def test_black_is_checked_by_openslide_also_where_it_has_other_levels(asap, tmp_path, monkeypatch, hidden):
    class OtherLevels(OpenSlideSlide):
        def __init__(self, path):
            super().__init__(path)
            self._levels = tuple(hidden)
            self.level_sizes = tuple(self.level_sizes[number] for number in hidden)

    image = draw()
    image[200:400, 200:400] = 0
    path = write_slide(tmp_path / "b.tif", image, compression="lzw", levels=3)
    slide = open_slide(path, "asap", asap)
    expected = slide.read(160, 160, 64, 64, level=1)
    monkeypatch.setattr("epsam.slides.asap.OpenSlideSlide", OtherLevels)
    slide = open_slide(path, "asap", asap)
    if 0 not in hidden:
        with pytest.raises(SlideError, match="ASAP gives black"):
            slide.read(160, 160, 64, 64, level=1)
        return
    assert np.abs(slide.read(160, 160, 64, 64, level=1).astype(int) - expected).max() <= 1
    slide = open_slide(path, "asap", asap)
    for number in range(30):
        spoil_tile(path, number)
    with pytest.raises(SlideError, match="cannot be decoded"):
        slide.read(210, 210, 64, 64, level=1)


def test_what_asap_does_not_open_is_an_error_and_auto_goes_on_with_openslide(asap, tmp_path):
    path = write_slide(tmp_path / "b.TIF", draw())
    with pytest.raises(SlideError, match="ASAP cannot open"):
        open_slide(path, "asap", asap)
    assert open_slide(path, "auto", asap).reader == "openslide"
    path.write_bytes(b"II*\0garbage")
    with pytest.raises(SlideError, match=r"b\.TIF"):
        open_slide(path, "auto", asap)


def test_level_that_is_not_there_is_an_error(asap, path):
    slide = open_slide(path, "asap", asap)
    for level in (-1, 3):
        with pytest.raises(SlideError, match="no level"):
            slide.read(0, 0, 8, 8, level)


def test_a_slide_is_pickled_without_its_handle(asap, path):
    slide = open_slide(path, "asap", asap)
    expected = slide.read(70, 50, 64, 64)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(slide)).read(70, 50, 64, 64), expected)


def test_a_handle_is_never_shared_over_a_fork(asap, path):
    slide = open_slide(path, "asap", asap)
    expected = slide.read(70, 50, 64, 64)
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: send.send(slide.read(70, 50, 64, 64)))
    child.start()
    assert receive.poll(30)
    np.testing.assert_array_equal(receive.recv(), expected)
    child.join()
