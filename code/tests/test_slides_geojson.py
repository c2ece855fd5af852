"""Annotations as QuPath's GeoJSON: every form that it writes, what is not for masks, and files made to do harm."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely.geometry import box

from epsam.config.schema import Config
from epsam.errors import AnnotationError
from epsam.inference.export import write_asap_xml, write_geojson
from epsam.inference.foci import Foci, Focus
from epsam.patches.candidates import CandidatesTask, find_candidates
from epsam.patches.manifest import SlideRecord
from epsam.slides.annotation_file import load_annotation
from epsam.slides.openslide import bounds_origin
from epsam.workspace import Workspace
from tests.slide_factory import GROUPS, draw, write_leica

SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30], [10, 10]]
HOLE = [[15, 15], [20, 15], [20, 20], [15, 20], [15, 15]]


def feature(coordinates=(SQUARE,), kind="Polygon", group="Tumor", **more) -> dict:
    properties = {"objectType": "annotation", "classification": {"name": group, "color": [200, 0, 0]}} | more
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": list(coordinates)}, "properties": properties}


def load(tmp_path: Path, content: object, groups=GROUPS, **more):
    path = tmp_path / "a.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return load_annotation(path, groups, **more)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: {"type": "FeatureCollection", "features": [f]},
        lambda f: [f],
        lambda f: f,
        lambda f: {"features": [f], "crs": {"type": "name", "properties": {}}, "type": "FeatureCollection"},
    ],
)
def test_every_form_of_qupath_gives_the_same_mask(tmp_path, wrap):
    a = load(tmp_path, wrap(feature([SQUARE, HOLE])))
    mask = a.mask(0, 0, 40, 40)
    assert mask.sum() == 19**2 - 4**2
    assert a.bounds() == (10, 10, 30, 30)
    assert a.fraction(0, 0, 40, 40) == mask.mean()
    with gzip.open(tmp_path / "packed.geojson", "wt") as stream:
        stream.write(json.dumps(wrap(feature([SQUARE, HOLE]))))
    (tmp_path / "windows.geojson").write_text(json.dumps(wrap(feature([SQUARE, HOLE]))), encoding="utf-16")
    for name in ("packed", "windows"):
        np.testing.assert_array_equal(load_annotation(tmp_path / f"{name}.geojson", GROUPS).mask(0, 0, 40, 40), mask)


def test_multipolygons_and_what_covers_a_hole_of_another_annotation(tmp_path):
    far = [[x + 50, y] for x, y in SQUARE]
    several = feature([[SQUARE, HOLE], [far]], "MultiPolygon")
    assert load(tmp_path, [several]).mask(0, 0, 99, 40).sum() == 2 * 19**2 - 4**2
    assert load(tmp_path, [feature([SQUARE, HOLE]), feature()]).mask(0, 0, 99, 40).sum() == 19**2
    parts = [several["geometry"], {"type": "Point", "coordinates": [1, 1]}]
    collection = feature() | {"geometry": {"type": "GeometryCollection", "geometries": parts}}
    assert load(tmp_path, [collection]).mask(0, 0, 99, 40).sum() == 2 * 19**2 - 4**2
    with pytest.raises(AnnotationError, match=r"all its tumour is covered by holes \(1 outlines of Tumor\)"):
        load(tmp_path, [feature([SQUARE, SQUARE])])


def test_classes_are_groups_and_the_origin_is_added(tmp_path):
    features = [feature(), feature([HOLE], group="Exclusion"), feature([[[0, 0], [90, 0], [90, 90]]], group="Stroma")]
    with pytest.raises(AnnotationError, match=r"no rule names the group Stroma; groups found: Exclusion \(1\), Stroma"):
        load(tmp_path, features)
    a = load(tmp_path, features, GROUPS | {"ignore": ["Stroma"]}, origin=(1000, 200))
    assert a.mask(1000, 200, 99, 99).sum() == 19**2 - 4**2
    assert a.bounds() == (1010, 210, 1030, 230)
    unclassified = feature() | {"properties": {"objectType": "annotation"}}
    assert load(tmp_path, [unclassified], {"tumour": ["None"]}).mask(0, 0, 40, 40).any()
    derived = feature(classification={"names": ["Tumor", "Positive"]})
    assert load(tmp_path, [derived], {"tumour": ["Tumor: Positive"]}).mask(0, 0, 40, 40).any()


def test_detections_points_and_lines_are_left_out_unless_a_rule_names_them(tmp_path, caplog):
    cell = feature([[[50, 50], [60, 50], [60, 60]]], objectType="detection")
    old = feature([[[50, 50], [60, 50], [60, 60]]]) | {"id": "PathCellObject"}
    del old["properties"]["objectType"]
    a = load(tmp_path, [feature(), cell, old, feature([5, 5], "Point"), feature([[5, 5], [6, 6]], "LineString")])
    assert a.mask(0, 0, 90, 90).sum() == 19**2
    assert "left out: cell: Tumor (1), detection: Tumor (1)" in caplog.text
    assert "without an area are left out: 1 LineString, 1 Point" in caplog.text
    named = load(tmp_path, [feature(), cell], {"tumour": ["Tumor", "detection: Tumor"]})
    assert named.mask(0, 0, 90, 90).sum() > 19**2


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[" * 100_000,
        '{"type":"FeatureCollection","features":[{}',
        '{"type": "Topology"}',
        "[1, 2]",
        "[null]",
        "[] []",
        '[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[1e300,1],[2,2],[3,1]]]}}]',
        '[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[NaN,1],[2,2],[3,1]]]}}]',
        '[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[["1","1"],["2","2"],["3","1"]]]}}]',
        '[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[1],[2],[3],[4]]]}}]',
        '[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[' + "[" * 500 + "]" * 500 + "]]}}]",
        '[{"type":"Feature","geometry":{"type":"Polygon","coordinates":7}}]',
        '[{"type":"Feature","geometry":"Polygon"}]',
        '[{"type":"Feature","properties":[1],"geometry":null}]',
        '[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[' + "9" * 5000 + ",1],[2,2],[3,1]]]}}]",
        "[" + "[]," * 5_000_001 + "[]]",
    ],
)
def test_geojson_made_to_do_harm_or_not_whole_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(AnnotationError, match=r"a\.geojson: ") as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_inference_writes_is_read_back_as_the_same_mask(tmp_path):
    island = Focus(box(60, 60, 81, 80), 0.8)
    ring = Focus(shapely.Polygon(box(20, 20, 120, 121.5).exterior, [shapely.Point(70, 70).buffer(40).exterior]), 0.9)
    foci = Foci(tmp_path, [ring])
    write_geojson(tmp_path / "a.geojson", foci, (0.25, 0.25), origin=(-300, 50))
    write_asap_xml(tmp_path / "a.xml", foci)
    mask = load_annotation(tmp_path / "a.geojson", GROUPS, origin=(-300, 50)).mask(0, 0, 150, 150)
    np.testing.assert_array_equal(mask, load_annotation(tmp_path / "a.xml", GROUPS).mask(0, 0, 150, 150))
    assert mask.sum() == pytest.approx(ring.polygon.area, rel=0.03)
    write_geojson(tmp_path / "a.geojson", Foci(tmp_path, [ring, island]), None)
    with_island = load_annotation(tmp_path / "a.geojson", GROUPS).mask(0, 0, 150, 150)
    assert (with_island ^ mask).sum() == 20 * 19


def test_outlines_of_qupath_lie_on_the_scanned_area_of_the_glass(tmp_path):
    path = write_leica(tmp_path / "a.scn", draw((512, 512), tissue=(16, 16, 496, 496)), (256, 192), (1024, 1024))
    assert bounds_origin(path) == (256, 192)
    annotation = tmp_path / "a.geojson"
    annotation.write_text(json.dumps([feature([[[100, 100], [300, 100], [300, 300], [100, 300]]])]))
    config = Config(name="x", patches={"size_px": 64})
    scan = find_candidates(
        CandidatesTask(SlideRecord("a", path, annotation=annotation), config, Workspace(tmp_path, "x"))
    )
    full = scan.fraction == 1
    assert full.any()
    assert scan.x[full].min() >= 356
    assert scan.x[full].max() + 64 <= 556
    assert scan.y[full].min() >= 292
