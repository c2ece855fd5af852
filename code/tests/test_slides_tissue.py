"""Tissue is found in strips: the same mask, in little memory."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from epsam.config.schema import Tissue
from epsam.slides.overview import Thumbnail, overview
from epsam.slides.reader import open_slide
from epsam.slides.tissue import find_tissue, tissue_mask
from tests.slide_factory import draw, write_slide


def test_tissue_found_strip_by_strip_is_that_of_the_overview_at_once(tmp_path):
    image = draw((1536, 1600), tissue=(100, 100, 1300, 1500), tumour=[(300, 200, 700, 1200)])
    slide = open_slide(write_slide(tmp_path / "a.tif", image), "openslide")
    for settings in (Tissue(downsample=2), Tissue(downsample=1, close_px=4, median_px=9)):
        whole = overview(slide, settings.downsample)
        thumbnail = Thumbnail(whole.shape[1], whole.shape[0], 200)
        mask = find_tissue(slide, settings, thumbnail=thumbnail)
        np.testing.assert_array_equal(mask, tissue_mask(whole, settings))
        picture = thumbnail.picture()
        assert 200 <= max(picture.shape) < 420
        small = cv2.resize(whole, picture.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(picture.astype(int) - small).mean() < 3


HUGE = """
import re
from pathlib import Path
import numpy as np
from epsam.config.schema import Tissue
from epsam.slides.slide import Slide
from epsam.slides.tissue import find_tissue

class Blank(Slide):
    def __init__(self):
        super().__init__(Path("huge.tif"))
        self.level_sizes = ((48896, 110592), (3056, 6912))
    def _open(self):
        return self
    def _read_inside(self, x, y, width, height, level):
        return np.full((height, width, 3), 200 + x % 7, np.uint8)

peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
find_tissue(Blank(), Tissue())
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_the_tissue_of_a_huge_slide_takes_few_bytes_a_pixel():
    run = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 / (3056 * 6912) < 8
