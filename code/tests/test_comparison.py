"""Rivals without a network, and the warnings about results that are of no use."""

import numpy as np
import pytest

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation.colour import choose_colour
from epsam.evaluation.comparison import find_warnings, paired_difference
from epsam.evaluation.methods import Figures
from epsam.evaluation.table import interval_of, result_row
from epsam.patches.patch import list_patches
from epsam.runtime.files import write_png

CONFIG = Config(name="test")
EOSIN, NUCLEI = (225, 140, 190), (90, 60, 150)


def figures(dice: float, normal_predicted: int = 0) -> Figures:
    """Twenty patches with tumour of one Dice on two slides, and ten normal ones."""
    rng = np.random.default_rng(3)
    both = np.clip(rng.normal(dice, 0.02, 20) * 1000, 0, 1000).astype(int)
    overlaps = [(int(b), 1000, 1000) for b in both] + [(0, normal_predicted, 0)] * 10
    names = [f"slide_{n % 2}_x{n}_y0_{int(n < 20)}" for n in range(30)]
    labels = np.array([1] * 20 + [0] * 10)
    return Figures(names, labels, np.full(30, 0.9), np.full(30, 2000), np.array(overlaps))


def test_a_good_result_has_no_warning():
    all_ = {"ones": figures(0.6), "cam": figures(0.7), "round3": figures(0.8)}
    row = result_row(CONFIG, "round3", all_["round3"])
    assert find_warnings(CONFIG, "round3", all_, row, auc=0.95) == []


@pytest.mark.parametrize(
    ("ones", "cam", "auc", "normal", "expected"),
    [
        (0.8, 0.7, 0.95, 0, "not clearly better than Whole patches"),
        (0.6, 0.9, 0.95, 0, "not clearly better than CAM mask"),
        (0.6, 0.7, 0.75, 0, "AUC on test patches is 0.750"),
        (0.6, 0.7, 0.95, 400, "marks 20.0% of the area of normal patches"),
    ],
)
def test_a_result_of_no_use_is_warned_of(ones, cam, auc, normal, expected):
    all_ = {"ones": figures(ones), "cam": figures(cam), "round3": figures(0.8, normal)}
    row = result_row(CONFIG, "round3", all_["round3"])
    (found,) = find_warnings(CONFIG, "round3", all_, row, auc)
    assert expected in found.what


def test_a_small_gain_on_the_same_patches_is_seen():
    value, low, high = paired_difference(CONFIG, figures(0.81), figures(0.80))
    assert 0 < low <= value <= high
    row = result_row(CONFIG, "cam", figures(0.8))
    assert interval_of(row, "dice")[1] - interval_of(row, "dice")[0] > high - low


def _write(folder, name: str, tumour: bool) -> None:
    image = np.full((64, 64, 3), EOSIN, np.uint8)
    if tumour:
        image[:, 16:] = NUCLEI
    write_png(folder / "image" / f"{name}_{int(tumour)}.png", image)


def test_the_colour_threshold_finds_the_colour_of_tumour_from_labels_alone(tmp_path):
    for n in range(4):
        _write(tmp_path, f"a{n}", tumour=True)
        _write(tmp_path, f"b{n}", tumour=False)
    chosen = choose_colour(list_patches(tmp_path))
    image = np.full((64, 64, 3), EOSIN, np.uint8)
    image[32:] = NUCLEI
    mask = chosen.mask(image)
    assert mask[44:].mean() > 0.9
    assert mask[:20].mean() < 0.1


def test_without_normal_patches_there_is_no_colour_threshold(tmp_path):
    _write(tmp_path, "a", tumour=True)
    with pytest.raises(DataError, match="val split"):
        choose_colour(list_patches(tmp_path))
