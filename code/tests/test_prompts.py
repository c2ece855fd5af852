"""Prompts: where points and boxes come from, and every corner where there is little to draw from."""

import numpy as np
import pytest

from epsam.config.schema import Prompts
from epsam.errors import DataError
from epsam.prompts import (
    NO_BOXES,
    NO_POINTS,
    PromptSet,
    boxes_from_mask,
    points_from_cam,
    points_from_mask,
    prompts_for,
    some_points,
)
from epsam.runtime.seeds import generator


def _square(height=40, width=60, y=5, x=20, side=10):
    mask = np.zeros((height, width), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_points_are_different_pixels_of_the_mask_as_x_y():
    mask = _square()
    points = points_from_mask(mask, 50, generator(1))
    assert points.shape == (50, 2)
    assert points.dtype == np.float32
    x, y = points.astype(int).T
    assert mask[y, x].all()
    assert len(np.unique(points, axis=0)) == 50
    assert x.min() >= 20  # columns, not rows


def test_points_spread_over_the_mask_evenly():
    mask = np.zeros((40, 40), bool)
    mask[:10], mask[30:] = True, True
    drawn = np.concatenate([points_from_mask(mask, 20, generator("even", n)) for n in range(200)])
    assert (drawn[:, 1] < 20).mean() == pytest.approx(0.5, abs=0.03)


def test_fewer_pixels_than_points_gives_all_of_them():
    mask = _square(side=2)
    everything = {(20, 5), (21, 5), (20, 6), (21, 6)}
    assert {tuple(p) for p in points_from_mask(mask, 50, generator(1)).astype(int)} == everything
    cam = mask * np.float32(0.5)
    assert {tuple(p) for p in points_from_cam(cam, mask, 50, generator(1)).astype(int)} == everything


def test_an_empty_mask_gives_no_prompt_at_all():
    empty = np.zeros((30, 30), bool)
    for kind in ("points", "boxes", "both"):
        for cam in (None, np.ones((30, 30), np.float32)):
            prompts = prompts_for(empty, cam, Prompts(kind=kind), generator(1))
            assert prompts.is_empty
            assert prompts.points.shape == (0, 2)
            assert prompts.boxes.shape == (0, 4)


def test_points_follow_the_map():
    mask = np.ones((20, 20), bool)
    cam = np.full((20, 20), 0.1, np.float32)
    cam[:, 10:] = 0.9
    drawn = np.concatenate([points_from_cam(cam, mask, 1, generator("map", n)) for n in range(2000)])
    assert (drawn[:, 0] >= 10).mean() == pytest.approx(0.9, abs=0.03)


def test_points_never_fall_where_the_map_is_zero_or_the_mask_is_not():
    mask = _square()
    cam = np.zeros(mask.shape, np.float32)
    cam[7, 22:40] = 1  # partly outside the mask
    points = points_from_cam(cam, mask, 50, generator(1))
    assert sorted(points.astype(int).tolist()) == [[x, 7] for x in range(22, 30)]
    assert not len(points_from_cam(cam * 0, mask, 50, generator(1)))


def test_points_depend_on_their_seed_alone():
    mask, other = _square(), _square(y=20)
    alone = points_from_mask(mask, 8, generator(3, "a", "train", 1))
    points_from_mask(other, 8, generator(3, "b", "train", 1))
    again = points_from_mask(mask, 8, generator(3, "a", "train", 1))
    np.testing.assert_array_equal(alone, again)
    assert not np.array_equal(alone, points_from_mask(mask, 8, generator(3, "a", "train", 2)))


@pytest.mark.parametrize("cam", [np.full((40, 60), np.nan), np.full((40, 60), -0.1), np.ones((20, 30))])
def test_a_map_that_is_no_map_of_the_mask_is_refused(cam):
    with pytest.raises(DataError, match="CAM"):
        points_from_cam(cam.astype(np.float32), _square(), 5, generator(1))


def test_boxes_enclose_components_the_largest_first():
    mask = _square() | _square(y=30, x=50, side=6)
    np.testing.assert_array_equal(boxes_from_mask(mask), [[20, 5, 30, 15], [50, 30, 56, 36]])
    np.testing.assert_array_equal(boxes_from_mask(mask, min_px=50), [[20, 5, 30, 15]])
    assert boxes_from_mask(mask, min_px=1000).shape == (0, 4)


def test_a_component_at_the_border_ends_at_the_border():
    mask = _square(y=30, x=50, side=10)
    np.testing.assert_array_equal(boxes_from_mask(mask), [[50, 30, 60, 40]])
    np.testing.assert_array_equal(boxes_from_mask(np.ones((40, 60), bool)), [[0, 0, 60, 40]])


def test_pixels_that_touch_at_a_corner_are_one_component():
    np.testing.assert_array_equal(boxes_from_mask(np.eye(4, dtype=bool)), [[0, 0, 4, 4]])


def test_the_kind_decides_what_sam_is_told():
    mask = _square()
    told = {
        kind: prompts_for(mask, None, Prompts(kind=kind, points=5, min_box_px=1), generator(1))
        for kind in ("points", "boxes", "both")
    }
    assert {kind: (len(p.points), len(p.boxes)) for kind, p in told.items()} == {
        "points": (5, 0),
        "boxes": (0, 1),
        "both": (5, 1),
    }
    assert not any(p.is_empty for p in told.values())


def test_some_of_the_points_are_one_to_all_and_of_the_same_number():
    everything = prompts_for(_square(), None, Prompts(kind="both", points=10, min_box_px=0), generator(1))
    counts = set()
    for draw in range(200):
        some = some_points(everything, generator("some", draw))
        assert some.points.shape == (10, 2)
        assert some.points.dtype == np.float32
        different = {tuple(point) for point in some.points}
        assert different <= {tuple(point) for point in everything.points}
        counts.add(len(different))
        np.testing.assert_array_equal(some.boxes, everything.boxes)
    assert counts == set(range(1, 11))


def test_some_of_no_points_are_none():
    assert some_points(PromptSet(NO_POINTS, NO_BOXES), generator(1)).is_empty
