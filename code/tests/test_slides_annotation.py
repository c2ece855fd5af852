"""Annotations: the pixel rule of ASAP, every release of Camelyon, and files that are not as they should be."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epsam.errors import AnnotationError
from epsam.slides.annotation_file import load_annotation
from epsam.slides.rasterize import Rasterizer, SpansByRow, rasterize
from tests.slide_factory import GROUPS, box_points, write_xml

XML = Path(__file__).parents[3] / "shared" / "data" / "camelyon16_xml"
SQUARE = [(10, 10), (30, 10), (30, 30), (10, 30)]
needs_real = pytest.mark.skipif(not XML.is_dir(), reason="no real annotations here")


def inside(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """ASAP's test point by point: winding of the edges to the left, cross product cut to an integer, box strict."""
    winding = np.zeros(x.shape, int)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        product = np.trunc((bx - ax) * (y - ay) - (x - ax) * (by - ay))
        winding += (ay <= y) & (by > y) & (product < 0)
        winding -= (ay > y) & (by <= y) & (product > 0)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return (winding != 0) & (x > x0) & (x < x1) & (y > y0) & (y < y1)


def expected_mask(polygons, x: int, y: int, width: int, height: int) -> np.ndarray:
    at_x, at_y = np.meshgrid(np.arange(x, x + width, dtype=float), np.arange(y, y + height, dtype=float))
    mask = np.zeros((height, width), bool)
    for kind in ("tumour", "hole"):
        for polygon in (p for p in polygons if p.kind == kind):
            mask[inside(polygon.points, at_x, at_y)] = kind == "tumour"
    return mask


def load(tmp_path, outlines, groups=GROUPS, **more):
    return load_annotation(write_xml(tmp_path / "a.xml", outlines, **more), groups)


def test_a_square_fills_its_pixels(tmp_path):
    a = load(tmp_path, [("Tumor", SQUARE)])
    expected = np.zeros((40, 50), bool)
    expected[6:25, 9:28] = True  # strictly inside the outline's box
    np.testing.assert_array_equal(a.mask(2, 5, 50, 40), expected)
    assert a.fraction(2, 5, 50, 40) == expected.mean()
    assert a.fraction(11, 11, 19, 19) == 1
    assert a.fraction(-500, -500, 20, 20) == 0
    assert a.bounds() == (10, 10, 30, 30)


def test_downsampled_mask_takes_every_nth_pixel(tmp_path):
    a = load(tmp_path, [("Tumor", [(3.5, 1), (90, 20), (40, 77), (12, 60)])])
    full = a.mask(5, 3, 80, 60)
    np.testing.assert_array_equal(a.mask(5, 3, 20, 15, downsample=4), full[::4, ::4])
    np.testing.assert_array_equal(
        a.mask(5, 3, 32, 24, downsample=2.5),
        full[np.floor(np.arange(24) * 2.5).astype(int)][:, np.floor(np.arange(32) * 2.5).astype(int)],
    )


@pytest.mark.parametrize("groups", [GROUPS, {"hole": ["Exclusion"], "tumour": ["Tumor"]}])
def test_kinds_are_painted_in_the_order_of_the_rules(tmp_path, groups):
    a = load(tmp_path, [("Exclusion", [(15, 15), (20, 15), (20, 40), (15, 40)]), ("Tumor", SQUARE)], groups)
    hole_last = list(groups) == ["tumour", "hole"]
    assert a.mask(0, 0, 40, 40)[18, 17] == (not hole_last)
    assert a.fraction(11, 11, 19, 19) == ((361 - 4 * 14) / 361 if hole_last else 1)


def test_overlapping_tumours_are_a_union_and_an_outline_drawn_twice_is_filled(tmp_path, caplog):
    a = load(tmp_path, [("Tumor", SQUARE), ("Tumor", [(20, 20), (50, 20), (50, 50), (20, 50)])])
    assert a.fraction(0, 0, 60, 60) == (19**2 + 29**2 - 9**2) / 3600
    assert not caplog.text
    twice = [*SQUARE, (10, 10), (20, 10), (20, 30), (10, 30)]
    assert load(tmp_path, [("Tumor", twice)]).fraction(0, 0, 40, 40) == 19**2 / 1600
    assert "cross themselves; all that they go round is filled, as in ASAP" in caplog.text


def test_pixels_on_and_just_beyond_an_edge_are_as_in_asap():
    """Worked out by hand: an edge from (10, 0) to (14, 8) passes x = 11, 12, 13 in rows 2, 4, 6, in steps of 1/2."""
    spans = rasterize([[np.array([(10, 0), (14, 8), (30, 8), (30, 0)], float)]], [0], [True])
    first = [int(np.flatnonzero(row)[0]) for row in spans.mask(0, 1, 40, 7)]
    assert first == [11, 12, 12, 13, 13, 14, 14]  # on the edge and nearer than 1/8 px to its right: outside
    assert (spans.mask(0, 1, 40, 7).sum(axis=1) == [30 - x for x in first]).all()  # x = 30 bounds the box


def test_outline_of_two_points_and_repeated_points_have_no_effect(tmp_path, caplog):
    a = load(tmp_path, [("Tumor", [p for p in SQUARE for _ in range(3)]), ("Tumor", [(0, 0), (40, 40)])])
    assert a.fraction(0, 0, 40, 40) == 19**2 / 1600
    assert "1 of 2 outlines have fewer than 3 points" in caplog.text


integers = st.integers(-5, 45)
decimals = st.floats(-5, 45, allow_nan=False).map(lambda value: round(value, 2))


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(integers | decimals, integers | decimals), min_size=1, max_size=9)),
        min_size=1,
        max_size=4,
    )
)
def test_any_polygons_agree_with_the_point_test(shapes):
    shapes = sorted(shapes, key=lambda shape: shape[0])  # tumours first, holes after
    points = [np.array(p, float) for _, p in shapes]
    polygons, layers = [[p] for p in points], [int(hole) for hole, _ in shapes]
    spans = rasterize(polygons, layers, [True, False])
    x, y = np.meshgrid(np.arange(40.0), np.arange(40.0))
    expected = np.zeros((40, 40), bool)
    for (hole, _), polygon in zip(shapes, points, strict=True):
        expected[inside(polygon, x, y)] = not hole
    np.testing.assert_array_equal(spans.mask(0, 0, 40, 40), expected)
    by_row = SpansByRow(Rasterizer(polygons, layers, [True, False]))
    np.testing.assert_array_equal(by_row.mask(0, 0, 14, 14, 3), expected[::3, ::3])
    at = np.array([0, 7, 20])
    areas = [expected[k : k + 11, k : k + 15].sum() for k in at]
    np.testing.assert_array_equal(spans.area(at, at, 15, 11), areas)
    np.testing.assert_array_equal(by_row.area(at, at, 15, 11), areas)
    assert by_row.is_empty == spans.is_empty


@needs_real
@pytest.mark.parametrize("name", ["tumor_001", "tumor_011", "tumor_054", "tumor_061", "tumor_064", "tumor_110"])
def test_real_outlines_agree_with_the_point_test(name):
    a = load_annotation(XML / f"{name}.xml", GROUPS)
    rng = np.random.default_rng(0)
    for polygon in rng.choice(np.array(a.polygons, dtype=object), 2):
        x, y = rng.choice(polygon.points).astype(int) - 32
        np.testing.assert_array_equal(a.mask(x, y, 64, 64), expected_mask(a.polygons, x, y, 64, 64))


@needs_real
def test_fractions_of_many_windows_are_the_means_of_their_masks():
    a = load_annotation(XML / "tumor_064.xml", GROUPS)
    rng = np.random.default_rng(1)
    points = np.concatenate([p.points for p in a.polygons])
    x, y = (rng.choice(points, 60) - rng.integers(0, 512, (60, 2))).astype(int).T
    share = a.fraction(x, y, 512, 300)
    np.testing.assert_allclose(share, [a.mask(i, j, 512, 300).mean() for i, j in zip(x, y, strict=True)], atol=1e-12)
    assert (share > 0).any()
    assert (share < 1).any()
    assert a.fraction(x.reshape(6, 10), y.reshape(6, 10), 512, 300).shape == (6, 10)


@pytest.mark.parametrize(
    ("tumour", "hole", "rules"),
    [
        ("_0", "_2", {"tumour": ["_0", "_1", "Tumor"], "hole": ["_2", "Exclusion"]}),
        ("_1", "Exclusion", {"tumour": ["_0", "_1", "Tumor"], "hole": ["_2", "Exclusion"]}),
        ("metastases", "normal", {"tumour": ["metastases"], "hole": ["normal"]}),
    ],
)
def test_every_release_of_camelyon(tmp_path, tumour, hole, rules):
    a = load(tmp_path, [(hole, box_points((12, 12, 22, 22))), (tumour, SQUARE)], rules, declared=[tumour, hole])
    assert a.fraction(11, 11, 19, 19) == 1 - 9**2 / 19**2


def test_points_are_taken_by_order_and_decimal_commas_are_read(tmp_path, caplog):
    path = write_xml(tmp_path / "a.xml", [("Tumor", [(f"{x},5", f"{y},25") for x, y in SQUARE])])
    text = path.read_text()
    a, b = (text.index(f'Order="{k}"') for k in (1, 2))
    swapped = text[:a] + 'Order="2"' + text[a + 9 : b] + 'Order="1"' + text[b + 9 :]
    lines = swapped.replace("<Coordinate ", "\n<Coordinate ").split("\n")
    second = next(i for i, line in enumerate(lines) if 'Order="2"' in line)
    lines[second], lines[second + 1] = lines[second + 1], lines[second]
    plain = load_annotation(path, GROUPS)
    np.testing.assert_array_equal(plain.polygons[0].points, np.add(SQUARE, (0.5, 0.25)))
    path.write_text("\n".join(lines))
    points = load_annotation(path, GROUPS).polygons[0].points
    np.testing.assert_array_equal(points[[0, 2, 1, 3]], np.add(SQUARE, (0.5, 0.25)))
    assert "Order" not in caplog.text


def test_order_out_of_range_is_sorted_with_a_warning(tmp_path, caplog):
    path = write_xml(tmp_path / "a.xml", [("Tumor", SQUARE)])
    path.write_text(path.read_text().replace('Order="3"', 'Order="900000000"'))
    np.testing.assert_array_equal(load_annotation(path, GROUPS).polygons[0].points, SQUARE)
    assert "Order does not count 0 to 3" in caplog.text


def test_group_that_no_rule_names_is_an_error_that_lists_what_is_there(tmp_path):
    with pytest.raises(AnnotationError, match=r"metastases.*groups found: Tumor \(1\), metastases \(2\)"):
        load(tmp_path, [("metastases", SQUARE), ("Tumor", SQUARE), ("metastases", SQUARE)])


def test_file_in_which_nothing_is_tumour_is_an_error(tmp_path):
    with pytest.raises(AnnotationError, match=r"nothing in it is tumour; groups found: Exclusion \(1\)"):
        load(tmp_path, [("Exclusion", SQUARE)])
    with pytest.raises(AnnotationError, match="holds no outline; if its slide is free of tumour"):
        load(tmp_path, [])


def test_undeclared_group_is_used_with_a_warning(tmp_path, caplog):
    assert load(tmp_path, [("Tumor", SQUARE)], declared=["Exclusion"]).fraction(11, 11, 19, 19) == 1
    assert "group Tumor is used but not declared" in caplog.text


def test_points_and_measurements_are_left_out_with_a_warning(tmp_path, caplog):
    path = write_xml(tmp_path / "a.xml", [("Tumor", SQUARE), ("Tumor", [(500, 500)])])
    path.write_text(path.read_text()[::-1].replace('"nogyloP"=epyT', '"toD"=epyT', 1)[::-1])
    assert len(load_annotation(path, GROUPS).polygons) == 1
    assert "1 Dot" in caplog.text


def test_rois_and_ignored_groups_are_not_painted_and_negatives_come_from_rois_alone(tmp_path):
    outlines = [("None", box_points((100, 100, 400, 400))), ("Tumor", SQUARE), ("stroma", box_points((0, 0, 90, 90)))]
    a = load(tmp_path, outlines, {"tumour": ["Tumor"], "ignore": ["stroma"], "roi": ["None"]})
    assert a.mask(0, 0, 500, 500).sum() == 19**2
    np.testing.assert_array_equal(
        a.in_regions(np.array([100, 200, 90, 0]), np.array([100, 336, 100, 0]), 64, 64), [True, True, False, False]
    )
    whole = load(tmp_path, [("Tumor", SQUARE)])
    assert whole.in_regions(np.array([0, 7000]), np.array([0, 0]), 64, 64).all()


def test_groups_in_a_group_are_what_that_group_is(tmp_path):
    path = write_xml(tmp_path / "a.xml", [("lesion 1", SQUARE)], declared=["Tumor", "lesion 1"])
    path.write_text(
        path.read_text().replace('Name="lesion 1" PartOfGroup="None"', 'Name="lesion 1" PartOfGroup="Tumor"')
    )
    assert load_annotation(path, GROUPS).mask(0, 0, 50, 50).sum() == 19**2
    with pytest.raises(
        AnnotationError, match=r"no rule names the group lesion 1; groups found: lesion 1 in Tumor \(1\)"
    ):
        load_annotation(path, {"tumour": ["metastases"]})
    path.write_text(path.read_text().replace('Name="Tumor" PartOfGroup="None"', 'Name="Tumor" PartOfGroup="lesion 1"'))
    assert load_annotation(path, GROUPS).mask(0, 0, 50, 50).any()  # groups that hold each other do not hang


def test_tumour_in_a_hole_of_tumour_is_an_island_and_a_hole_over_all_tumour_is_said(tmp_path, caplog):
    outer, hole, island = box_points((0, 0, 90, 90)), box_points((20, 20, 70, 70)), box_points((40, 40, 50, 50))
    in_island = box_points((43, 43, 46, 46))
    a = load(tmp_path, [("Tumor", island), ("Exclusion", in_island), ("Exclusion", hole), ("Tumor", outer)])
    assert a.mask(0, 0, 99, 99).sum() == 89**2 - 49**2 + 9**2 - 2**2
    assert "kept as islands" in caplog.text
    with pytest.raises(AnnotationError, match=r"all its tumour is covered by holes \(1 outlines of Exclusion\)"):
        load(tmp_path, [("Tumor", island), ("Exclusion", hole)])


def test_types_that_asap_does_not_have_and_outlines_without_coordinates(tmp_path, caplog):
    path = write_xml(tmp_path / "a.xml", [("Tumor", SQUARE), ("Tumor", [])])
    assert load_annotation(path, GROUPS).mask(0, 0, 50, 50).sum() == 19**2
    assert "1 of 2 outlines have no coordinates" in caplog.text
    path.write_text(path.read_text().replace('"Polygon"', '"Ellipse"', 1))
    with pytest.raises(AnnotationError, match=r"a\.xml: annotation `Annotation 0` is of type Ellipse"):
        load_annotation(path, GROUPS)


def test_outlines_that_zigzag_over_millions_of_rows_cost_bounded_memory_or_are_refused(tmp_path):
    def peak(turns: int) -> float:
        path = write_xml(tmp_path / "a.xml", [("Tumor", [(10 * i, 1_900_000 * (i % 2)) for i in range(turns)])])
        annotation = load_annotation(path, GROUPS)
        tracemalloc.start()
        try:
            assert annotation.mask(0, 900_000, 99, 99).any()
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    assert peak(4) < 150
    with pytest.raises(AnnotationError, match=r"a\.xml: outlines cross .* pixel rows, too many"):
        peak(16)


@pytest.mark.parametrize(
    "text",
    [
        '<ASAP_Annotations><Annotations><Annotation Name="{}"/></Annotations></ASAP_Annotations>',
        "<ASAP_Annotations>{}</ASAP_Annotations>",
    ],
)
def test_xml_of_huge_tags_is_refused_before_it_is_read(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_text(text.format("x" * 2**21))
    with pytest.raises(AnnotationError, match="tag or text of more than 1 MiB"):
        load_annotation(path, GROUPS)


def test_messages_repeat_little_of_a_file_and_no_control_characters(tmp_path):
    path = write_xml(
        tmp_path / "a.xml",
        [(f"\u202e{'y' * 5000}", SQUARE) for _ in range(3)] + [(f"g{i}", SQUARE) for i in range(500)],
    )
    with pytest.raises(AnnotationError) as caught:
        load_annotation(path, GROUPS)
    assert len(str(caught.value)) < 1500
    assert "\u202e" not in str(caught.value)
    assert "and 4" in str(caught.value)


BOMB = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">{}]><ASAP_Annotations>&e9;</ASAP_Annotations>"""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such annotation file"),
        ("", "not whole or not XML"),
        ("<ASAP_Annotations><Annotations><Annotation PartOfGroup='Tum", "not whole or not XML"),
        ("<html></html>", "a web page"),
        ("<Annotations/>", "not an annotation of ASAP .its root is Annotations.*GeoJSON from QuPath"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (
            BOMB.format(
                "".join(f'<!ENTITY e{n} "{f"&{chr(101) + str(n - 1) if n else chr(97)};" * 10}">' for n in range(10))
            ),
            "entities",
        ),
        (
            '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]><ASAP_Annotations>&x;'
            "</ASAP_Annotations>",
            "entities",
        ),
    ],
)
def test_files_that_are_not_whole_or_hostile_are_refused(tmp_path, content, reason):
    path = tmp_path / "bad.xml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AnnotationError, match=reason) as caught:
        load_annotation(path, GROUPS)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", "1e300", "1.234,5", "99999999"])
def test_coordinates_that_no_slide_has_are_refused(tmp_path, value):
    with pytest.raises(AnnotationError, match="Annotation 0"):
        load(tmp_path, [("Tumor", [*SQUARE, (value, 5)])])


def test_the_type_of_an_annotation_counts_in_any_letters(tmp_path):
    path = write_xml(tmp_path / "a.xml", [("Tumor", box_points((10, 10, 60, 60)))])
    path.write_text(path.read_text().replace('Type="Polygon"', 'Type="polygon"'))
    assert load_annotation(path, GROUPS).fraction(10, 10, 50, 50) > 0.9
