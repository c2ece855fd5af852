"""A slide that consists of several files is one slide."""

import numpy as np
import pytest

from epsam.slides.grouping import group_slides
from epsam.slides.reader import open_slide
from tests.dicom_factory import write_dicom
from tests.slide_factory import draw, write_slide


@pytest.fixture
def folder(tmp_path):
    write_dicom(tmp_path, ["1.2.3.dcm", "a.dcm"], draw())
    write_dicom(tmp_path, ["b.DCM", "c.dcm"], draw(seed=1))
    (tmp_path / "d.dcm").write_bytes(b"no DICOM")
    write_slide(tmp_path / "e.tif", draw())
    return tmp_path


def test_dicom_files_of_one_series_are_one_slide_named_by_level_0(folder):
    slides = group_slides(folder.iterdir())
    assert [slide.path.name for slide in slides] == ["1.2.3.dcm", "b.DCM", "d.dcm", "e.tif"]
    assert [file.name for file in slides[0].files] == ["1.2.3.dcm", "a.dcm"]
    assert [len(slide.files) for slide in slides] == [2, 2, 1, 1]


def test_a_copy_of_a_series_in_another_folder_is_no_second_slide(folder):
    (folder / "copy").mkdir()
    (folder / "copy" / "z.dcm").write_bytes((folder / "1.2.3.dcm").read_bytes())
    slides = group_slides(path for path in folder.rglob("*.dcm"))
    assert [slide.path.name for slide in slides].count("z.dcm") == 0
    assert len(slides[0].files) == 3


def test_a_dicom_slide_is_read_with_all_levels(folder):
    slide = open_slide(group_slides(folder.iterdir())[0].path)
    assert slide.vendor == "dicom"
    assert list(slide.level_sizes) == [(768, 640), (384, 320)]
    assert slide.mpp == pytest.approx((0.25, 0.25))
    assert np.abs(slide.read(200, 200, 64, 64).astype(int) - draw()[200:264, 200:264]).mean() < 8
