"""`epsam convert` makes a slide of pictures that no reader takes for one."""

import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from epsam.cli import cli
from epsam.errors import SlideError
from epsam.slides.conversion import convert
from epsam.slides.reader import open_slide
from tests.slide_factory import draw


@pytest.fixture
def image():
    return cv2.blur(cv2.resize(draw(), (2304, 1920)), (5, 5))


def deep(path, image):
    tifffile.imwrite(path, image.astype(np.uint16) * 16, tile=(256, 256), photometric="rgb")


WRITERS = {
    "a.png": lambda p, i: Image.fromarray(i).save(p),
    "a.jpg": lambda p, i: Image.fromarray(i).save(p, quality=95),
    "a.tif": lambda p, i: tifffile.imwrite(p, i, photometric="rgb", compression="zlib"),
    "planes.tif": lambda p, i: tifffile.imwrite(
        p, i.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"
    ),
    "12-bit.tif": deep,
    "12-bit.png": lambda p, i: cv2.imwrite(str(p), i[..., ::-1].astype(np.uint16) * 16),
    "16-bit.png": lambda p, i: cv2.imwrite(str(p), i[..., ::-1].astype(np.uint16) * 257),
    "ycbcr.tif": lambda p, i: tifffile.imwrite(
        p, np.asarray(Image.fromarray(i).convert("YCbCr")), photometric="ycbcr", compression="zlib"
    ),
    "cmyk.tif": lambda p, i: Image.fromarray(i).convert("CMYK").save(p),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_picture_becomes_a_tiled_pyramid_with_its_resolution(tmp_path, image, name):
    WRITERS[name](tmp_path / name, image)
    convert(tmp_path / name, tmp_path / "new" / "slide.tif", 0.5)
    slide = open_slide(tmp_path / "new" / "slide.tif", "openslide")
    assert slide.level_sizes == ((2304, 1920), (1152, 960), (576, 480))
    assert slide.mpp == pytest.approx((0.5, 0.5), rel=1e-4)
    assert slide.handle().tiles is not None
    assert np.abs(slide.read(300, 200, 700, 600).astype(int) - image[200:800, 300:1000]).mean() < 3


def test_the_advice_of_the_reader_works_as_it_stands(tmp_path, image):
    path = tmp_path / "it's a region.tif"
    tifffile.imwrite(path, image, photometric="rgb")
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    command = re.search(r"python (-m epsam convert .*)", str(caught.value))[1].replace("UM_PER_PIXEL", "0.25")
    run = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert open_slide(tmp_path / "OUT.tif").mpp == pytest.approx((0.25, 0.25), rel=1e-4)


def test_transparency_is_white(tmp_path):
    rgba = np.dstack([draw(), np.full((640, 768), 255, np.uint8)])
    rgba[:300, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    convert(tmp_path / "a.png", tmp_path / "b.tif", 0.5)
    assert open_slide(tmp_path / "b.tif").read(0, 0, 700, 280).min() > 250


def test_the_resolution_that_the_file_says_is_kept(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", draw(), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    convert(tmp_path / "a.tif", tmp_path / "b.tif")
    assert open_slide(tmp_path / "b.tif").mpp == pytest.approx((0.5, 0.5), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "target", "mpp", "reason"),
    [
        (lambda p: Image.fromarray(draw()[..., 0]).save(p), "b.tif", 0.5, "is grey"),
        (lambda p: Image.fromarray(draw()).save(p), "b.tif", None, "does not say its resolution; give --mpp"),
        (lambda p: Image.fromarray(draw()).save(p), "b.tif", 500.0, "500 um per pixel is no resolution"),
        (lambda p: Image.fromarray(draw()).save(p), "b.png", 0.5, "must end in .tif"),
        (lambda p: Image.fromarray(draw()).save(p), "a.tif", 0.5, "is there already"),
        (lambda p: p.write_text("hello"), "b.tif", 0.5, "no picture that is known"),
        (lambda p: None, "b.tif", 0.5, "no such file"),
    ],
)
def test_what_cannot_be_converted_says_why_and_leaves_no_file(tmp_path, make, target, mpp, reason):
    (tmp_path / "a.tif").write_bytes(b"kept")
    make(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), str(tmp_path / target), *([] if mpp is None else ["--mpp", str(mpp)])]
    result = CliRunner().invoke(cli, ["convert", *arguments])
    assert reason in str(result.exception)
    assert (tmp_path / "a.tif").read_bytes() == b"kept"
    assert {p.name for p in tmp_path.iterdir()} <= {"a.tif", "a.png"}
