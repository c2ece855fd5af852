"""Panels and charts show what they were given."""

import base64
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from epsam.patches.patch import location_of
from epsam.report.example_section import _choose
from epsam.report.slide_section import draw_patches
from epsam.visualization import charts as plots
from epsam.visualization import drawing, palette, panels

PATCH = np.full((64, 96, 3), 200, np.uint8)


def test_prompts_land_where_they_are_also_on_patches_that_are_not_square():
    blank = np.zeros((256, 256, 3), np.uint8)
    drawn = panels.draw_prompts(blank, np.array([[72.0, 16.0]]), np.zeros((0, 4)), (64, 96))
    rows, columns = np.nonzero(drawn.any(2))
    assert columns.mean() == pytest.approx(72 / 96 * 256, abs=1)
    assert rows.mean() == pytest.approx(16 / 64 * 256, abs=1)
    assert not blank.any()


def test_boxes_are_drawn():
    blank = np.zeros((256, 256, 3), np.uint8)
    drawn = panels.draw_prompts(blank, np.zeros((0, 2)), np.array([[24.0, 16.0, 72.0, 48.0]]), (64, 96))
    rows, columns = np.nonzero(drawn.any(2))
    assert (columns.min(), columns.max()) == pytest.approx((64, 192), abs=4)
    assert (rows.min(), rows.max()) == pytest.approx((64, 192), abs=4)


def test_errors_differ_from_hits():
    prediction, truth = np.zeros((64, 96), bool), np.zeros((64, 96), bool)
    prediction[:, :60] = True
    truth[:, 30:80] = True
    drawn = panels.draw_errors(PATCH, prediction, truth).astype(int)
    extra, hit, missed, neither = (drawn[128, column] for column in (20, 120, 190, 240))
    assert hit[2] > hit[0]
    assert extra[0] > extra[2]
    assert missed[0] > missed[2]
    assert missed[1] > extra[1]
    assert (neither == 200).all()


def test_patches_lie_in_their_places_and_the_majority_counts_where_they_overlap():
    picture = np.full((200, 300, 3), 200, np.uint8)
    yes, no = np.ones((64, 64), bool), np.zeros((64, 64), bool)
    squares = [
        np.array(square) for square in ((20, 20, 84, 84), (52, 20, 116, 84), (52, 40, 116, 104), (250, 150, 314, 214))
    ]
    drawn = draw_patches(
        picture, [(squares[0], yes, yes), (squares[1], no, yes), (squares[2], None, None), (squares[3], yes, None)]
    ).astype(int)
    right, missed, outvoted, alarm, outside = (
        drawn[y, x] for y, x in ((30, 30), (30, 100), (60, 60), (170, 280), (150, 30))
    )
    assert right[2] > right[0]
    assert missed[0] > missed[2]
    assert missed[1] > missed[2]
    assert (outvoted == missed).all()
    assert alarm[0] > alarm[2]
    assert (outside > 220).all()
    assert (picture == 200).all()


@pytest.mark.parametrize(
    ("name", "place"),
    [("tumor_001_x128_y0_1", ("tumor_001", 128, 0)), ("a_x1_y2_x30_y40_0", ("a_x1_y2", 30, 40)), ("brought_1", None)],
)
def test_the_name_of_a_patch_tells_its_place(name, place):
    found = location_of(name)
    assert (found and (found.slide, found.x, found.y)) == place


def test_a_mask_has_no_outline_along_the_border_of_the_patch():
    drawn = panels.draw_mask(PATCH, np.ones((64, 96), bool))
    assert (drawn == drawn[128, 128]).all()


def test_maps_get_brighter_with_their_values():
    ramp = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (64, 1))
    drawn = panels.draw_map(PATCH, ramp).sum(2)[128].astype(int)
    assert drawn[10] < drawn[128] < drawn[250]


def test_jpeg_is_shrunk_to_its_longest_side():
    noise = np.random.default_rng(0).integers(0, 255, (400, 800, 3), np.uint8)
    data = base64.b64decode(panels.as_jpeg(noise, 80).removeprefix("data:image/jpeg;base64,"))
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (40, 80, 3)


def _svg(uri: str) -> str:
    head, _, data = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    text = base64.b64decode(data).decode()
    ElementTree.fromstring(text)
    return text


def test_charts_are_svg_in_the_colours_of_the_theme():
    points = plots.points_chart([("CAM mask", 0.7, 0.68, 0.73), ("Round 1", 0.8, 0.8, 0.8)], "Dice", "Round 1")
    lines = plots.curves_chart(
        {"train loss": plots.Curve([1, 2, 3], [3, 2, 1]), "val loss": plots.Curve([1, 2, 3], [3, 2, float("nan")], 2)}
    )
    for text, wanted in ((_svg(points), ("CAM mask", "Round 1")), (_svg(lines), ("train loss", "val loss"))):
        assert all(word in text for word in wanted)
        assert "prefers-color-scheme: dark" in text
        assert not any(stand_in in text for stand_in in plots.THEME)


def test_the_same_figures_give_the_same_bytes_in_another_process():
    code = "from epsam.visualization.charts import points_chart; print(points_chart([('a', 0.5, 0.4, 0.6)], 'Dice'))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]


def test_figures_that_differ_little_are_shown_on_an_axis_that_shows_it():
    text = _svg(plots.points_chart([("A", 0.921, 0.918, 0.924), ("B", 0.925, 0.922, 0.928)], "Dice"))
    assert "0.92" in text
    assert "0.5" not in re.findall(r">([0-9.]+)<", text)


def test_text_and_legend_are_on_the_sheet_and_no_text_leaves_it():
    picture = np.full((40, 300, 3), 255, np.uint8)
    entries = [drawing.Entry(f"a long name of colour {n}", palette.WRONG) for n in range(6)]
    sheet = drawing.add_legend(picture, entries, "map")
    assert sheet.shape[1] == 300
    assert (sheet[40:] == np.array(palette.WRONG)).all(2).sum() > 6 * 80
    assert drawing.text_width(drawing.fit_text("x" * 500, 100)) <= 100


def test_a_scale_bar_has_the_length_it_says():
    panel = np.full((256, 256, 3), 200, np.uint8)
    drawing.draw_scale_bar(panel, 0.5)  # 128 um wide: a bar of 20 um, 40 px
    row = (panel[246] == 0).all(1)
    assert row.sum() == 40


@pytest.mark.parametrize("count", range(1, 14))
def test_best_median_and_worst_hold_no_patch_twice(count):
    dice = np.random.default_rng(count).random(count)
    chosen = _choose(dice)
    shown = np.concatenate(list(chosen.values()))
    assert len(set(shown.tolist())) == len(shown)
    assert chosen["Best"][0] == dice.argmax()
    if count > 1:
        assert chosen["Worst"][-1] == dice.argmin()
    assert (np.diff(dice[shown]) <= 0).all()
