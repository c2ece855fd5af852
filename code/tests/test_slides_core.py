"""Slides, annotations and splits on small real files: what decides whether patches are right."""

from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pytest
from matplotlib.path import Path as Outline

from epsam.demo.slides import make_demo
from epsam.errors import AnnotationError, SlideError
from epsam.patches.camelyon import PUBLISHED_SPLITS
from epsam.slides.annotation_file import load_annotation
from epsam.slides.overview import overview
from epsam.slides.reader import open_slide
from epsam.workspace import SPLITS

GROUPS = {"tumour": ["_0", "Tumor"], "hole": ["_2", "Exclusion"]}
SHARED = Path(__file__).parents[3] / "shared" / "data"


def _xml(path, *outlines, head=""):
    """ASAP XML of outlines (group, [(x, y), ...])."""
    nodes = "".join(
        f'<Annotation Name="{i}" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for i, (group, points) in enumerate(outlines)
    )
    path.write_text(
        f'<?xml version="1.0"?>{head}<ASAP_Annotations><Annotations>{nodes}</Annotations></ASAP_Annotations>'
    )
    return path


SQUARE = [(10, 10), (50, 10), (50, 50), (10, 50)]
HOLE = [(20, 20), (30, 20), (30, 30), (20, 30)]


def test_holes_are_painted_after_tumour_wherever_they_stand_in_the_file(tmp_path):
    a = load_annotation(_xml(tmp_path / "a.xml", ("_2", HOLE), ("_0", SQUARE)), GROUPS)
    mask = a.mask(0, 0, 64, 64)
    assert mask.sum() == 39 * 39 - 9 * 9  # strictly inside the boxes, as ASAP counts
    assert mask[11, 11]
    assert not mask[25, 25]
    assert not mask[10, 11]


def test_masks_of_crossing_outlines_follow_the_winding_number(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.uniform(5, 95, (11, 2)).round(2)  # a star that crosses itself many times
    mask = load_annotation(_xml(tmp_path / "a.xml", ("Tumor", points)), GROUPS).mask(0, 0, 100, 100)
    winding = np.zeros((100, 100), int)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        y, x = np.mgrid[:100, :100]
        crosses = (y0 <= y) != (y1 <= y)
        with np.errstate(divide="ignore", invalid="ignore"):
            right = x - (x0 + (y - y0) * (x1 - x0) / (y1 - y0)) >= 1 / abs(y1 - y0)
        winding += np.where(crosses & right, np.sign(y1 - y0), 0).astype(int)
    assert len(np.unique(winding)) >= 3
    assert (mask != (winding != 0)).sum() <= 2


def test_windows_downsampled_masks_and_fractions_agree_with_the_whole_mask(tmp_path):
    points = [(3, 7), (90, 4), (60, 50), (95, 90), (20, 80)]
    a = load_annotation(_xml(tmp_path / "a.xml", ("Tumor", points), ("Exclusion", HOLE)), GROUPS)
    whole = a.mask(0, 0, 100, 100)
    assert (a.mask(30, 20, 40, 50) == whole[20:70, 30:70]).all()
    assert (a.mask(0, 0, 25, 25, downsample=4) == whole[::4, ::4]).all()
    assert (a.mask(-10, -10, 20, 20)[:10] == 0).all()
    x, y = np.array([0, 30, 60, 200]), np.array([0, 20, 60, 0])
    expected = [whole[j : j + 32, i : i + 32].sum() / 32**2 for i, j in zip(x, y, strict=True)]
    assert a.fraction(x, y, 32, 32) == pytest.approx(expected)
    assert a.fraction(0, 0, 100, 100) == pytest.approx(whole.mean())


def test_points_are_sorted_by_order_and_decimal_commas_read(tmp_path):
    text = _xml(tmp_path / "a.xml", ("Tumor", SQUARE)).read_text()
    shuffled = (
        text.replace('Order="1"', 'Order="9"').replace('Order="2"', 'Order="1"').replace('Order="9"', 'Order="2"')
    )
    (tmp_path / "b.xml").write_text(shuffled.replace('X="50"', 'X="50,0"'))
    a, b = (load_annotation(tmp_path / f, GROUPS) for f in ("a.xml", "b.xml"))
    assert a.mask(0, 0, 64, 64).sum() == 39 * 39
    assert b.mask(0, 0, 64, 64).sum() < 39 * 39  # another order of the corners is another outline


@pytest.mark.parametrize(
    ("outlines", "message"),
    [
        ([("Tumor", SQUARE), ("geen tumor?", HOLE)], r"no rule names the group geen tumor\?.*Tumor \(1\)"),
        ([("Exclusion", HOLE)], "nothing in it is tumour.*Exclusion"),
        ([("Tumor", [("a", 1), (2, 2), (3, 1)])], "no number"),
        ([("Tumor", [(1e300, 1), (2, 2), (3, 1)])], "beyond any slide"),
    ],
)
def test_annotations_that_cannot_be_used_say_why(tmp_path, outlines, message):
    with pytest.raises(AnnotationError, match=message):
        load_annotation(_xml(tmp_path / "a.xml", *outlines), GROUPS)


def test_hostile_cut_off_and_missing_xml(tmp_path):
    bomb = _xml(tmp_path / "bomb.xml", ("Tumor", SQUARE), head='<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>')
    with pytest.raises(AnnotationError, match="defines entities"):
        load_annotation(bomb, GROUPS)
    cut = tmp_path / "cut.xml"
    cut.write_text(_xml(tmp_path / "a.xml", ("Tumor", SQUARE)).read_text()[:200])
    with pytest.raises(AnnotationError, match="not whole"):
        load_annotation(cut, GROUPS)
    with pytest.raises(AnnotationError, match="no such annotation"):
        load_annotation(tmp_path / "none.xml", GROUPS)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_polygons_agree_with_an_independent_point_test():
    path = SHARED / "camelyon16_xml" / "tumor_073.xml"
    a = load_annotation(path, {"tumour": ["_0", "_1", "Tumor"], "hole": ["_2", "Exclusion"]})
    x0, y0 = (int(v) for v in a.bounds()[:2])
    mask = a.mask(x0, y0, 300, 300, downsample=16)
    grid = np.stack(np.meshgrid(x0 + np.arange(300) * 16, y0 + np.arange(300) * 16), axis=-1).reshape(-1, 2)
    expected = np.zeros(len(grid), bool)
    for kind in a.paint_order:
        for polygon in (p for p in a.polygons if p.kind == kind):
            expected[Outline(np.vstack([polygon.points, polygon.points[:1]])).contains_points(grid)] = kind == "tumour"
    assert mask.any()
    assert (mask.ravel() != expected).mean() < 2e-3


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    make_demo(folder, tumour=1, normal=0, size_px=700, workers=1)
    return folder / "images" / "tumor_001.tif"


def test_pixels_are_those_of_openslide_and_white_outside(slide_path):
    slide = open_slide(slide_path, backend="openslide")
    (width, height), raw = slide.size, openslide.OpenSlide(slide_path)
    inside = slide.read(100, 200, 64, 48)
    assert (inside == np.asarray(raw.read_region((100, 200), 0, (64, 48)).convert("RGB"))).all()
    corner = slide.read(width - 10, height - 10, 32, 32)
    assert (corner[:10, :10] == slide.read(width - 10, height - 10, 10, 10)).all()
    assert (corner[10:] == 255).all()
    assert (slide.read(-40, -40, 40, 40) == 255).all()
    assert slide.mpp == pytest.approx((0.5, 0.5), rel=1e-3)
    assert overview(slide, 8).shape == (-(-height // 8), -(-width // 8), 3)


def test_slides_that_cannot_be_read(tmp_path, slide_path):
    for name, content in (
        ("empty.tif", b""),
        ("garbage.svs", b"not a slide"),
        ("cut.tif", slide_path.read_bytes()[:5000]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SlideError, match=name):
            open_slide(tmp_path / name, backend="openslide")
    with pytest.raises(SlideError, match="no such file"):
        open_slide(tmp_path / "none.tif")
    with pytest.raises(SlideError, match="ASAP"):
        open_slide(slide_path, backend="asap")


@pytest.mark.parametrize(
    ("collection", "counts", "some"),
    [("camelyon16", (47, 6, 15), "tumor_061"), ("camelyon17", (27, 3, 9), "patient_024_node_1")],
)
def test_published_splits_have_their_slides(collection, counts, some):
    published = PUBLISHED_SPLITS[collection]
    assert tuple(Counter(published.values())[split] for split in SPLITS) == counts
    assert published[some] == "train"
