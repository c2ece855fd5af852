"""TIFFs that OpenSlide reads in part or not at all: with all levels, or refused with what they are and what to do."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from epsam.errors import SlideError
from epsam.slides.reader import open_slide
from tests.slide_factory import draw, write_slide

UM = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}


def write_ome(path: Path, image: np.ndarray, axes: str, levels: int = 2, metadata: dict | None = None, **how) -> Path:
    """Write RGB uint8 as OME-TIFF with its coarser levels as SubIFDs, samples in the order of `axes`."""
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for level in range(levels + 1):
            small = image[:: 2**level, :: 2**level]
            pixels = np.ascontiguousarray(small if axes == "YXS" else small.transpose(2, 0, 1))
            about = {"axes": axes, **UM, **(metadata or {})}
            tiff.write(
                pixels,
                tile=(128, 128),
                subifds=0 if level else levels,
                subfiletype=int(level > 0),
                metadata=None if level else about,
                **how,
            )
    return path


WAYS = {
    "SubIFDs, JPEG": ("YXS", {"photometric": "rgb", "compression": "jpeg"}),
    "planar": ("SYX", {"photometric": "rgb", "planarconfig": "separate", "compression": "deflate"}),
    "planar, JPEG": ("SYX", {"photometric": "rgb", "planarconfig": "separate", "compression": "jpeg"}),
    "a page a colour": ("CYX", {"photometric": "minisblack", "compression": "lzw"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_ome_tiff_is_read_with_all_levels_colours_and_its_resolution(tmp_path, way):
    axes, how = WAYS[way]
    image = cv2.blur(draw(), (9, 9))
    slide = open_slide(write_ome(tmp_path / "a.ome.tif", image, axes, **how))
    assert slide.level_sizes == ((768, 640), (384, 320), (192, 160))
    assert slide.mpp == pytest.approx((0.25, 0.25))
    assert np.abs(slide.read(70, 50, 300, 200).astype(int) - image[50:250, 70:370]).max() < 12
    assert np.abs(slide.read(80, 40, 60, 50, level=2).astype(int) - image[40:240:4, 80:320:4]).max() < 12
    assert (slide.read(700, 600, 100, 100)[40:] == 255).all()


def test_three_channels_of_fluorescence_are_no_slide_in_colour(tmp_path):
    dark = draw() // 4
    path = write_ome(tmp_path / "a.ome.tif", dark, "CYX", photometric="minisblack")
    with pytest.raises(SlideError, match="fluorescence"):
        open_slide(path)
    colours = {"Channel": {"Color": [-16776961, 16711935, 65535]}}
    named = write_ome(tmp_path / "b.ome.tif", dark, "CYX", metadata=colours, photometric="minisblack")
    np.testing.assert_array_equal(open_slide(named).read(70, 50, 30, 20), dark[50:70, 70:100])


def test_a_compression_that_openslide_does_not_know_is_read(tmp_path):
    path = write_slide(tmp_path / "a.tif", draw(), compression="webp", levels=3)
    slide = open_slide(path)
    assert slide.level_sizes == ((768, 640), (384, 320), (192, 160))
    assert slide.mpp == pytest.approx((0.25, 0.25), rel=1e-4)
    assert np.abs(slide.read(70, 50, 300, 200).astype(int) - draw()[50:250, 70:370]).mean() < 5


def test_a_damaged_tile_is_an_error_with_its_place(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", draw(), "YXS", photometric="rgb", compression="jpeg")
    slide = open_slide(path)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[7], tiff.pages[0].databytecounts[7]
    with path.open("r+b") as stream:
        stream.seek(offset + count // 2)
        stream.write(bytes(count // 2))
    with pytest.raises(SlideError, match="cannot be decoded at x=130 y=130"):
        slide.read(130, 130, 20, 20)


@pytest.mark.parametrize("size", [(100, 250), (40, 150), (65, 180)])
def test_a_macro_among_the_levels_is_left_out(tmp_path, size):
    image = draw()
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for level, pixels in enumerate((image, image[::2, ::2], np.full((*size, 3), 200, np.uint8), image[::4, ::4])):
            tiff.write(
                np.ascontiguousarray(pixels),
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(level > 0),
                metadata=None,
            )
    slide = open_slide(path)
    assert slide.level_sizes == ((768, 640), (384, 320), (192, 160))
    assert np.abs(slide.read(80, 80, 60, 50, level=2).astype(int) - image[80:280:4, 80:320:4]).mean() < 12


@pytest.mark.parametrize("order", ["macro last", "macro that is not called reduced", "label first", "thumbnail first"])
def test_level_0_is_the_slide_whatever_else_the_file_holds_and_in_whatever_order(tmp_path, order):
    image, path = draw(), tmp_path / "a.tif"
    macro = (np.full((1500, 500, 3), 200, np.uint8), int(order == "macro last"), 8.0)
    label = (np.full((200, 190, 3), 200, np.uint8), 0, 8.0)
    levels = [(image, 0, 0.25), (image[::2, ::2], 1, 0.5)]
    pages = {"label first": [label, *levels], "thumbnail first": [(image[::4, ::4], 0, 1.0), *levels]}.get(
        order, [*levels, macro]
    )
    with tifffile.TiffWriter(path) as tiff:
        for pixels, kind, mpp in pages:
            tiff.write(
                np.ascontiguousarray(pixels),
                tile=(128, 128),
                photometric="rgb",
                compression="deflate",
                subfiletype=kind,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    slide = open_slide(path)
    assert slide.level_sizes == ((768, 640), (384, 320))
    assert slide.mpp == pytest.approx((0.25, 0.25), rel=1e-4)
    np.testing.assert_array_equal(slide.read(300, 200, 100, 90), image[200:290, 300:400])


def grey(path):
    tifffile.imwrite(path, draw()[..., 0], tile=(128, 128), photometric="minisblack")


def deep(path):
    tifffile.imwrite(path, draw().astype(np.uint16) * 16, tile=(128, 128), photometric="rgb")


def striped(path):
    tifffile.imwrite(path, draw(), photometric="rgb")


def ycbcr(path):
    """Colours that tifffile, which alone knows this compression, does not turn into RGB."""
    pixels = cv2.cvtColor(draw(), cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="ycbcr", compression="zstd")


def lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (grey, "a.tif", r"is grey \(one channel\)"),
        (deep, "a.tif", r"16 bits a channel.* epsam convert \S+a\.tif OUT\.tif"),
        (ycbcr, "a.tif", "colours are stored as YCBCR; convert it"),
        (
            lambda p: p.write_text("[Virtual Microscope Specimen]\nNoLayers=1\n"),
            "a.vms",
            "that it names are not all beside it",
        ),
        (striped, "a.tif", "stored in strips; convert it"),
        (lfs, "a.svs", "git lfs pull"),
        (lambda p: p.write_text("\n<!DOCTYPE html><html>Sign in"), "a.svs", "a web page"),
        (lambda p: p.write_bytes(b"PK\3\4" + bytes(50)), "a.tif", "a zip archive, not a slide; unpack"),
        (lambda p: p.write_bytes(cv2.imencode(".png", draw())[1].tobytes()), "a.tif", "a PNG picture.*epsam convert"),
        (lambda p: p.write_bytes(cv2.imencode(".jpg", draw())[1].tobytes()), "a.mrxs", r"the folder a/ with Slidedat"),
        (lambda p: p.write_bytes(bytes(5000)), "a.ndpi", "are zero, the download did not finish"),
        (lambda p: p.write_bytes(b"II*\0" + b"\1" * 400), "a.tif", "cannot open this TIFF.*download it again"),
    ],
)
def test_what_is_no_slide_says_what_it_is_and_what_to_do(tmp_path, make, name, reason):
    make(tmp_path / name)
    with pytest.raises(SlideError, match=reason) as caught:
        open_slide(tmp_path / name)
    assert "\n" not in str(caught.value)
