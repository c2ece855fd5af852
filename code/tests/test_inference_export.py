"""What is written for QuPath and ASAP must say the same, and lie where the slide says."""

import json
import subprocess
import sys
import warnings
from itertools import combinations

import cv2
import numpy as np
import openslide
import pytest
import shapely
import tifffile
from shapely.geometry import Polygon, box, shape

from epsam.inference.area import tissue_area
from epsam.inference.export import write_asap_xml, write_geojson
from epsam.inference.foci import Foci, Focus
from epsam.inference.outlines import find_foci
from epsam.inference.overlay import write_overlay
from epsam.inference.probability import ProbabilityMap
from epsam.inference.pyramid import write_mask, write_probability
from epsam.runtime.files import read_image
from epsam.runtime.text import round_length
from epsam.slides.annotation_file import load_annotation
from epsam.slides.reader import open_slide

GROUPS = {"tumour": ["Tumor"], "hole": ["Exclusion"]}
SIZE, STEP = (3003, 2401), 3.9
"""Neither divides the other: the last map pixels reach over the slide."""
LEVELS = [SIZE, (1501, 1200), (375, 300)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Blobs that touch the border of the slide and of blocks, and a ring around an island."""
    source = ProbabilityMap(tmp_path_factory.mktemp("map") / "map.u8", SIZE, STEP)
    rows, columns = source.shape
    noise = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((rows, columns)), (0, 0), 18)
    values = 0.5 + 0.3 * noise / noise.std()
    y, x = np.mgrid[:rows, :columns]
    radius = np.hypot(y - rows / 2, x - columns / 2)
    ring = cv2.GaussianBlur(((radius < 60) | ((radius > 100) & (radius < 160))).astype(float), (0, 0), 5)
    values = np.where(radius < 200, ring, values)
    np.rint(values.clip(0, 1) * 255).astype(np.uint8).tofile(source.path)
    return source


@pytest.fixture(scope="module")
def foci(source):
    return find_foci(source, 0.5, 10_000)


@pytest.fixture(scope="module")
def mask(foci, tmp_path_factory):
    path = tmp_path_factory.mktemp("mask") / "slide_mask.tif"
    write_mask(path, foci, LEVELS, (0.25, 0.26))
    return path


def foci_of(folder, polygons):
    """Foci of these outlines, kept in `folder`."""
    return Foci(folder, [Focus(polygon, 0.9) for polygon in polygons])


def test_outlines_enclose_what_the_map_says(source, foci):
    values = source.read(0, 10_000, 0, 10_000)
    from_map = cv2.resize(values, None, fx=STEP, fy=STEP, interpolation=cv2.INTER_LINEAR)[: SIZE[1], : SIZE[0]] > 127
    assert sum(f.polygon.area for f in foci) == pytest.approx(from_map.sum(), rel=0.01)
    assert all(f.polygon.is_valid and 0.5 <= f.probability <= 1 for f in foci)
    assert all(a.disjoint(b) or a.touches(b) for a, b in combinations(foci.outlines, 2))


def test_outlines_do_not_show_the_blocks_they_were_cut_in(source, foci, monkeypatch):
    monkeypatch.setattr("epsam.inference.outlines.BLOCK", 200)
    again = find_foci(source, 0.5, 10_000)
    assert len(again) == len(foci)
    both = [shapely.union_all([f.polygon for f in found]) for found in (foci, again)]
    assert both[0].symmetric_difference(both[1]).area < 0.002 * both[0].area


@pytest.mark.parametrize("block", [7, 16, 33, 50])
def test_pieces_of_a_focus_that_meet_only_above_or_below_are_one(tmp_path, monkeypatch, block):
    """A comb with its back above, one with its back below, a spiral of one piece, and a column that is too small."""
    values = np.zeros((160, 200), np.uint8)
    values[5:12, 5:80] = values[5:70, 5:80:15] = values[5:70, 6:80:15] = 255
    values[80:87, 5:80] = values[20:87, 10:80:15] = values[20:87, 11:80:15] = 255
    for turn in range(0, 40, 8):
        cv2.rectangle(values, (100 + turn, 10 + turn), (190 - turn, 140 - turn), 255, 2)
        values[12 + turn : 18 + turn, 99 + turn : 102 + turn] = 0
        cv2.line(values, (100 + turn, 19 + turn), (108 + turn, 19 + turn), 255, 2)
    values[95:155, 40:43] = 255
    source = ProbabilityMap(tmp_path / "map.u8", (200, 160), 1.0)
    values.tofile(source.path)
    whole = find_foci(source, 0.5, 1000)  # more than any piece has
    monkeypatch.setattr("epsam.inference.outlines.BLOCK", block)
    in_blocks = find_foci(source, 0.5, 1000)
    assert len(in_blocks) == len(whole) == 3
    for one, other in zip(whole, in_blocks, strict=True):
        assert one.polygon.symmetric_difference(other.polygon).area < 0.01 * one.polygon.area


def test_small_foci_are_dropped_and_small_holes_filled(tmp_path):
    values = np.zeros((200, 200), np.uint8)
    values[20:120, 20:120] = 255
    values[50:55, 50:55] = 0
    values[80:110, 80:110] = 0
    values[150:155, 150:155] = 255
    source = ProbabilityMap(tmp_path / "map.u8", (200, 200), 1.0)
    values.tofile(source.path)
    found = find_foci(source, 0.5, 100)
    assert [len(f.polygon.interiors) for f in found] == [1]
    assert found[0].polygon.area == pytest.approx(100**2 - 30**2, rel=0.01)


def test_mask_opens_as_a_slide_with_its_levels_and_resolution(mask):
    opened = openslide.OpenSlide(mask)
    assert list(opened.level_dimensions[:3]) == LEVELS
    assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.25)
    assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(0.26)
    full = np.asarray(opened.read_region((0, 0), 0, SIZE))[..., 0]
    assert set(np.unique(full)) == {0, 255}
    coarse = np.asarray(opened.read_region((0, 0), 2, LEVELS[2]))[..., 0]
    assert np.mean((cv2.resize(full, LEVELS[2], interpolation=cv2.INTER_AREA) > 127) != (coarse > 127)) < 0.005
    with tifffile.TiffFile(mask) as tiff:
        assert all(not page.pages and page.is_tiled for page in tiff.pages)


def test_xml_and_geojson_give_the_mask_back(foci, mask, tmp_path):
    full = tifffile.imread(mask) > 0
    write_asap_xml(tmp_path / "slide.xml", foci)
    from_xml = load_annotation(tmp_path / "slide.xml", GROUPS).mask(0, 0, *SIZE)
    assert (from_xml ^ full).sum() <= 0.005 * full.sum()
    write_geojson(tmp_path / "slide.geojson", foci, (0.25, 0.26))
    features = json.loads((tmp_path / "slide.geojson").read_text())["features"]
    region = shapely.union_all([shape(feature["geometry"]) for feature in features])
    y, x = np.mgrid[3 : SIZE[1] : 7, 3 : SIZE[0] : 7]
    shapely.prepare(region)
    assert (shapely.contains_xy(region, x, y) ^ full[3::7, 3::7]).sum() <= 0.005 * full[3::7, 3::7].sum()
    assert region.area == pytest.approx(full.sum(), rel=0.005)


def test_tumour_inside_a_hole_survives_the_xml(source, foci, tmp_path):
    island = SIZE[0] // 2, SIZE[1] // 2
    assert any(f.polygon.interiors and box(*f.polygon.bounds).contains(shapely.Point(island)) for f in foci)
    write_asap_xml(tmp_path / "slide.xml", foci)
    annotation = load_annotation(tmp_path / "slide.xml", GROUPS)
    assert annotation.mask(*island, 1, 1).all()
    assert not annotation.mask(island[0] + int(80 * STEP), island[1], 1, 1).any()


def test_exclusions_around_an_island_cover_the_hole_and_nothing_else(tmp_path):
    ring = Polygon(box(0, 0, 100, 100).exterior, [box(10, 10, 90, 90).exterior])
    islands = [box(20, 20, 40, 40), Polygon(box(50, 50, 80, 80).exterior, [box(60, 60, 70, 70).exterior])]
    excluded = list(foci_of(tmp_path, (ring, *islands)).exclusions)
    assert all(not polygon.interiors for polygon in excluded)
    assert shapely.union_all(excluded).equals(shapely.difference(box(10, 10, 90, 90), shapely.union_all(islands)))


def test_geojson_is_valid_and_counts_from_the_bounds(foci, tmp_path):
    origin = (1000, 300)
    write_geojson(tmp_path / "a.geojson", foci, (0.5, 0.5))
    write_geojson(tmp_path / "b.geojson", foci, None, origin)
    plain, shifted = (json.loads((tmp_path / f"{n}.geojson").read_text()) for n in "ab")
    assert plain["type"] == "FeatureCollection"
    for feature, moved in zip(plain["features"], shifted["features"], strict=True):
        polygon = shape(feature["geometry"])
        assert feature["type"] == "Feature"
        assert polygon.is_valid
        assert box(0, 0, *SIZE).covers(polygon)
        rings = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in rings)
        assert [shapely.LinearRing(ring).is_ccw for ring in rings] == [True] + [False] * (len(rings) - 1)
        back = shapely.transform(shape(moved["geometry"]), lambda points: points + origin)
        assert back.equals(polygon)
        measured = feature["properties"]["measurements"]
        assert measured["Area mm^2"] == pytest.approx(polygon.area * 0.25e-6, abs=1e-6)
        assert "Area mm^2" not in moved["properties"]["measurements"]
        assert feature["properties"]["classification"] == {"name": "Tumor", "color": [200, 0, 0]}


def test_probability_is_the_map_at_every_level(source, tmp_path):
    write_probability(tmp_path / "p.tif", source, LEVELS, None)
    opened = openslide.OpenSlide(tmp_path / "p.tif")
    assert list(opened.level_dimensions[:3]) == LEVELS
    assert "openslide.mpp-x" not in opened.properties
    values = source.read(0, 10_000, 0, 10_000)
    for level, size in enumerate(LEVELS):
        pixels = np.asarray(opened.read_region((0, 0), level, size))[..., 0].astype(float)
        x = ((np.arange(source.shape[1] - 1) + 0.5) * STEP / SIZE[0] * size[0]).astype(int)
        y = ((np.arange(source.shape[0] - 1) + 0.5) * STEP / SIZE[1] * size[1]).astype(int)
        assert np.abs(pixels[np.ix_(y, x)] - values[:-1, :-1]).mean() < 3


def test_more_foci_than_are_kept_as_runs_are_painted_and_read_back_all_the_same(foci, mask, tmp_path, monkeypatch):
    monkeypatch.setattr("epsam.slides.rasterize.KEPT_CROSSINGS", 1000)
    monkeypatch.setattr("epsam.slides.rasterize.BAND_CROSSINGS", 500)
    monkeypatch.setattr("epsam.inference.painted.LOADED_BYTES", 2000)
    monkeypatch.setattr("epsam.inference.area.STRIP_ROWS", 10)
    write_mask(tmp_path / "m.tif", foci, LEVELS, (0.25, 0.26))
    assert (tmp_path / "m.tif").read_bytes() == mask.read_bytes()
    write_asap_xml(tmp_path / "a.xml", foci)
    back = load_annotation(tmp_path / "a.xml", GROUPS)
    np.testing.assert_array_equal(back.mask(0, 0, *SIZE), tifffile.imread(mask) > 0)
    tissue = np.ones((SIZE[1] // 20, SIZE[0] // 20), bool)
    assert tissue_area(tissue, 20, foci) == pytest.approx(SIZE[0] * SIZE[1], rel=0.01)


def test_a_disk_too_full_for_the_outlines_is_named(source):
    """As any other file that cannot be written, it ends the run: the next slide would meet it as well."""
    code = """
import resource, sys
from pathlib import Path
from epsam.inference.outlines import find_foci
from epsam.inference.probability import ProbabilityMap
from epsam.runtime.failures import guard
source = ProbabilityMap(Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3])), float(sys.argv[4]))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    with guard(Path("slide.tif")):
        find_foci(source, 0.5, 10_000)
except OSError as error:
    print(error.filename)
"""
    arguments = [sys.executable, "-c", code, source.path, *map(str, SIZE), str(STEP)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == (str(source.path.parent), "")


def test_a_wide_slide_without_levels_gets_levels(tmp_path):
    write_mask(tmp_path / "m.tif", Foci(tmp_path, []), [(9000, 700)], None)
    assert openslide.OpenSlide(tmp_path / "m.tif").level_dimensions == ((9000, 700), (4500, 350), (2250, 175))


def test_nothing_found_is_written_as_such(tmp_path):
    write_geojson(tmp_path / "a.geojson", Foci(tmp_path, []), None)
    write_asap_xml(tmp_path / "a.xml", Foci(tmp_path, []))
    write_mask(tmp_path / "m.tif", Foci(tmp_path, []), [(600, 500)], (1, 1))
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    assert not tifffile.imread(tmp_path / "m.tif").any()


def test_same_bytes_twice(foci, source, tmp_path):
    for name in "ab":
        write_mask(tmp_path / f"{name}.tif", foci, LEVELS, (0.25, 0.25))
        write_geojson(tmp_path / f"{name}.geojson", find_foci(source, 0.5, 10_000), None)
    for suffix in (".tif", ".geojson"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_overlay_tints_the_tissue_where_the_map_is_high(foci, source, tmp_path, monkeypatch):
    monkeypatch.setattr("epsam.inference.overlay.LONG_SIDE", 600)
    slide_path = tmp_path / "slide.tif"
    pixels = np.full((SIZE[1], SIZE[0], 3), (230, 120, 190), np.uint8)
    tifffile.imwrite(
        slide_path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="lzw",
        resolution=(40_000, 40_000),
        resolutionunit="CENTIMETER",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of letters that the font lacks
        write_overlay(tmp_path / "o.png", open_slide(slide_path), source, foci, "slide \u5207\u7247 \x07", "caption")
    picture = read_image(tmp_path / "o.png").astype(int)
    same = np.abs(picture - (230, 120, 190)).max(axis=2) < 4
    assert 0.05 < same.mean() < 0.8


@pytest.mark.parametrize(("length", "rounded"), [(999, 500), (1000, 1000), (47, 20), (0.3, 0.2)])
def test_scale_bars_have_round_lengths(length, rounded):
    assert round_length(length) == pytest.approx(rounded)


def test_tissue_counts_where_it_is_found_or_where_tumour_is_marked(tmp_path):
    tissue = np.zeros((30, 40), bool)
    tissue[:, :20] = True
    assert tissue_area(tissue, 16, Foci(tmp_path, [])) == 30 * 20 * 256
    inside, across = box(50, 60, 250, 300), box(200, 100, 600.5, 400)
    assert tissue_area(tissue, 16, foci_of(tmp_path, [inside])) == pytest.approx(30 * 20 * 256, rel=0.02)
    both = shapely.union(box(0, 0, 320, 480), across).area
    assert tissue_area(tissue, 16, foci_of(tmp_path, [across])) == pytest.approx(both, rel=0.02)
    ring = shapely.Polygon(box(0, 0, 320, 480).exterior, [box(100, 100, 200, 200).exterior])
    assert tissue_area(tissue, 16, foci_of(tmp_path, [ring])) == pytest.approx(30 * 20 * 256, rel=0.02)
    assert tissue_area(np.zeros((30, 40), bool), 16, foci_of(tmp_path, [across])) == across.area
