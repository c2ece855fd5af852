"""Tissue, candidate windows, which of them are chosen, and which slide goes where."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epsam.config.schema import Config, Patches, Selection, Slides, Tissue
from epsam.errors import ConfigError, DataError, SlideError
from epsam.patches.camelyon import PUBLISHED_SPLITS, canonical_name, patient_of, split_lists
from epsam.patches.grid import candidate_windows, window_px
from epsam.patches.manifest import SlideRecord
from epsam.patches.selection import Candidates, select
from epsam.patches.slide_table import SlideInfo
from epsam.patches.splits import apply_published, assign_random
from epsam.slides.tissue import tissue_mask
from tests.slide_factory import draw


def config(**sections) -> Config:
    return Config(name="t", **sections)


def test_tissue_is_what_is_stained():
    mask = tissue_mask(draw(size=(400, 300), tissue=(100, 80, 300, 220)), Tissue(median_px=5))
    expected = np.zeros((300, 400), bool)
    expected[80:220, 100:300] = True
    assert (mask != expected).mean() < 0.002


def test_pale_tissue_is_found_by_a_threshold_of_its_own():
    image = draw(size=(300, 300), tissue=(0, 0, 0, 0))
    image[100:200, 100:200] = (236, 226, 233)  # saturation 11
    image[20:40, 20:40] = (60, 60, 200)  # pen, on which Otsu's threshold lands
    assert not tissue_mask(image, Tissue())[110:190, 110:190].any()
    assert tissue_mask(image, Tissue(), threshold=7)[110:190, 110:190].all()


def glass(seed: int = 0, tint=(244, 243, 245), noise: float = 3, unevenness: int = 0) -> np.ndarray:
    """(300, 400, 3) uint8: an empty slide; `unevenness`: how much less green there is at the right than at the left."""
    image = np.full((300, 400, 3), tint, float)
    image[..., 1] -= np.linspace(0, unevenness, 400)
    return np.clip(np.rint(image + np.random.default_rng(seed).normal(0, noise, image.shape)), 0, 255).astype(np.uint8)


EMPTY = {
    "clean": {},
    "noisy": {"noise": 10},
    "tinted": {"tint": (240, 228, 238), "noise": 6},
    "uneven": {"unevenness": 10},
}


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("pen", [None, (12, 12, 15), (40, 40, 46), (75, 75, 82)])
def test_glass_is_no_tissue_whatever_its_noise_and_pen_on_it(kind, pen):
    image = glass(**EMPTY[kind])
    if pen:
        cv2.line(image, (30, 250), (330, 280), pen, 12)
    assert not tissue_mask(image, Tissue()).any()


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("pen", [False, True])
def test_a_speck_of_tissue_on_much_glass_is_found_alone(kind, pen):
    image = glass(**EMPTY[kind])
    image[100:130, 200:240] = draw(size=(40, 30), tissue=(0, 0, 40, 30))
    if pen:
        cv2.line(image, (30, 250), (330, 280), (40, 40, 46), 12)
    mask = tissue_mask(image, Tissue())
    assert mask[104:126, 204:236].all()
    mask[94:136, 194:246] = False
    assert not mask.any()


def test_empty_parts_of_the_file_do_not_make_tinted_glass_tissue():
    image = glass(**EMPTY["tinted"])
    image[:, :150] = 255
    assert not tissue_mask(image, Tissue()).any()


def test_slide_that_is_all_tissue_is_all_tissue():
    assert tissue_mask(draw(size=(400, 300), tissue=(0, 0, 400, 300)), Tissue(), threshold=20).all()
    dark = draw(size=(400, 300), tissue=(0, 0, 400, 300), tumour=[(0, 0, 200, 300)])
    assert tissue_mask(dark, Tissue())[:, 10:190].all()


def test_tissue_near_the_edge_of_the_slide_does_not_grow_to_it():
    mask = tissue_mask(draw(size=(400, 300), tissue=(12, 12, 300, 200)), Tissue())
    assert mask[20:190, 20:290].all()
    assert not mask[:8].any()
    assert not mask[:, :8].any()


def test_windows_lie_on_two_grids_over_tissue_within_the_border():
    tissue = np.zeros((100, 125), bool)
    tissue[40:60, 30:90] = True
    patches = Patches(size_px=128)
    x, y = candidate_windows(tissue, (2000, 1600), 128, patches)
    first = (x - 20) % 128 == 0
    assert set(((y - 16) % 128)[first]) == {0}
    assert set(((x - 20) % 128)[~first]) == set(((y - 16) % 128)[~first]) == {64}
    assert x.min() >= 20
    assert y.min() >= 16
    assert (x + 128).max() <= 1980
    assert (y + 128).max() <= 1584
    held = [
        tissue[(j + 32) // 16 : (j + 96 + 15) // 16, (i + 32) // 16 : (i + 96 + 15) // 16].any()
        for i, j in zip(x, y, strict=True)
    ]
    assert all(held)
    every = candidate_windows(np.ones_like(tissue), (2000, 1600), 128, patches)
    rest = set(zip(*every, strict=True)) - set(zip(x, y, strict=True))
    assert not any(
        tissue[(j + 32) // 16 : (j + 96 + 15) // 16, (i + 32) // 16 : (i + 96 + 15) // 16].any() for i, j in rest
    )


def test_slide_smaller_than_a_window_has_none():
    assert len(candidate_windows(np.ones((10, 10), bool), (100, 100), 128, Patches(size_px=128))[0]) == 0


def test_window_covers_the_wanted_resolution():
    assert window_px(Patches(), None) == 512
    assert window_px(Patches(target_mpp=0.5), (0.25, 0.25)) == 1024
    with pytest.raises(SlideError, match=r"slides\.csv"):
        window_px(Patches(target_mpp=0.5), None)


def choose(fraction, allowed=True, **selection):
    patches = {"train": Selection(**selection), "positive_share": (0.2, 0.9)}
    return select(
        Candidates(
            fraction,
            (fraction > 0).astype(np.int8),
            np.full(len(fraction), allowed),
            np.zeros(len(fraction), bool),
        ),
        "train",
        config(patches=patches, classifier={"positive_share": (0.1, 1.0)}),
    )


FRACTION = np.concatenate([np.zeros(500), np.repeat(np.arange(1, 101) / 100, 30)])


def test_bins_give_as_many_as_asked_and_only_the_range_is_cut():
    purpose = choose(FRACTION, per_bin=43, negatives=100)
    share = FRACTION[purpose == "all"]
    assert (share == 0).sum() == 100
    assert share[share > 0].min() > 0.2
    assert share.max() <= 0.9
    counts = np.unique(np.ceil(share[share > 0] * 20 - 1e-9), return_counts=True)[1]
    assert counts.tolist() == [43] * 14


def test_published_figures_of_camelyon16():
    fraction = np.random.default_rng(0).uniform(0.001, 1, 40000)
    for per_bin, total in ((430, 6020), (50, 700), (143, 2002)):
        assert (choose(fraction, per_bin=per_bin) == "all").sum() == total


def test_bin_that_holds_fewer_gives_all():
    fraction = np.concatenate([np.full(7, 0.33), np.full(90, 0.52)])
    share = fraction[choose(fraction, per_bin=20) == "all"]
    assert (share == 0.33).sum() == 7
    assert (share == 0.52).sum() == 20


def test_top_up_is_drawn_before_the_cut_to_the_range():
    fraction = np.concatenate([np.full(40, 0.05), np.full(400, 0.5), np.full(400, 0.97)])
    got = (choose(fraction, per_bin=50, top_up=300) == "all").sum()
    assert 50 < got < 210  # 140 by bins, 160 more at random of which about half lie outside the range
    assert got == (choose(fraction, per_bin=50, top_up=300) == "all").sum()


def test_at_random_draws_in_the_range():
    share = FRACTION[choose(FRACTION, at_random=200) == "all"]
    assert len(share) == 200
    assert share.min() > 0.2
    assert share.max() <= 0.9


def test_classifier_extra_lies_in_its_range_and_outside_that_of_sam():
    purpose = choose(FRACTION, at_random=10, classifier_extra=50)
    share = FRACTION[purpose == "classifier"]
    assert len(share) == 50
    assert (((share > 0.1) & (share <= 0.2)) | (share > 0.9)).all()


def test_no_negatives_where_the_annotation_is_not_complete(caplog):
    assert (FRACTION[choose(FRACTION, allowed=False, per_bin=5, negatives=9) != ""] > 0).all()
    assert "no negatives" in caplog.text


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=60))
def test_selection_never_leaves_its_ranges(shares):
    fraction = np.array(shares)
    purpose = choose(fraction, per_bin=2, top_up=20, negatives=3, classifier_extra=4)
    chosen = fraction[purpose == "all"]
    assert (((chosen > 0.2) & (chosen <= 0.9 + 1e-6)) | (chosen == 0)).all()
    assert (purpose == "classifier").sum() <= 4


def records(names, **more):
    return [SlideRecord(name, f"{name}.tif", **more) for name in names]


def by_split(found):
    return {
        split: [r.slide for r in found if r.split == split and r.status == "ok"] for split in ("train", "val", "test")
    }


def test_published_lists_have_their_published_sizes():
    assert [len(v) for v in split_lists("camelyon16").values()] == [47, 6, 15]
    assert [len(v) for v in split_lists("camelyon17").values()] == [27, 3, 9]
    assert split_lists("camelyon17")["train"][0] == "patient_024_node_1"
    assert "patient_004_node_4" in split_lists("camelyon17")["test"]
    assert not set(split_lists("camelyon16")["train"]) & set(split_lists("camelyon16")["test"])


def test_published_split_is_followed_and_shared_patients_are_said(caplog):
    found = records([*PUBLISHED_SPLITS["camelyon17"], "patient_099_node_4"])
    apply_published(found, config(slides=Slides(collection="camelyon17", split="published")))
    assert by_split(found) == split_lists("camelyon17")
    assert found[-1].status == "excluded"
    for patient in ("patient_015", "patient_017", "patient_046"):
        assert patient in caplog.text


def test_slides_of_a_published_split_that_are_not_here_are_counted_and_named(caplog):
    here = [name for name in PUBLISHED_SPLITS["camelyon16"] if name not in ("tumor_013", "tumor_061", "tumor_018")]
    found = records(here)
    xml = Path("annotations/tumor_013.xml")
    found.append(SlideRecord("tumor_013", xml, annotation=xml, status="failed"))  # its slide is not here
    apply_published(found, config(slides=Slides(collection="camelyon16", split="published")))
    assert "train 2 of 47 (tumor_018, tumor_061); val 1 of 6 (tumor_013)" in caplog.text


def test_published_split_of_which_nothing_is_here_is_an_error():
    names = [name for name, split in PUBLISHED_SPLITS["camelyon17"].items() if split != "val"]
    with pytest.raises(DataError, match=r"for val is here.*val 3 of 3 \(patient_015_node_2, patient_034_node_3, "):
        apply_published(records(names), config(slides=Slides(collection="camelyon17", split="published")))
    with pytest.raises(DataError, match=r"for train, val, test is here.*train 27 of 27 .* and 17 .*slides.csv"):
        apply_published(
            records(["mine_1", "mine_2"]), config(slides=Slides(collection="camelyon17", split="published"))
        )


def test_patient_disjoint_keeps_val_and_test_and_shares_no_patient():
    found = records(PUBLISHED_SPLITS["camelyon17"])
    apply_published(found, config(slides=Slides(collection="camelyon17", split="patient-disjoint")))
    got, published = by_split(found), split_lists("camelyon17")
    assert got["val"] == published["val"]
    assert got["test"] == published["test"]
    assert got == split_lists("camelyon17", "patient-disjoint")
    patients = [{patient_of(name) for name in names} for names in got.values()]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
    assert {patient_of(r.slide) for r in found if r.status == "excluded"} == {
        "patient_015",
        "patient_017",
        "patient_046",
    }


def test_patient_disjoint_is_refused_for_own_slides():
    with pytest.raises(ConfigError, match="random"):
        apply_published(records("abc"), config(slides=Slides(split="patient-disjoint")))


@pytest.mark.parametrize("count", [3, 4, 5, 10, 14, 60])
def test_random_split_is_balanced_and_depends_on_names_alone(count):
    names = [f"tumor_{n:03d}" for n in range(count)] + [f"normal_{n:03d}" for n in range(10)]

    def usable(record):
        return record.slide.startswith("tumor")

    found = records(names)
    assign_random(found, usable, config())
    got = by_split(found)
    tumours = [sum(name.startswith("tumor") for name in slides) for slides in got.values()]
    assert sum(tumours) == count
    assert min(tumours) >= 1
    assert all(abs(n - count * share) <= 1 for n, share in zip(tumours, (0.6, 0.15, 0.25), strict=True))
    assert [sum(name.startswith("normal") for name in slides) for slides in got.values()] in ([6, 1, 3], [6, 2, 2])
    again = records(names[::-1])
    assign_random(again, usable, config())
    assert {r.slide: r.split for r in again} == {r.slide: r.split for r in found}
    other = records(names)
    assign_random(other, usable, config(patches={"seed": 7}))
    assert count < 10 or by_split(other) != got


def test_random_split_keeps_patients_whole_and_heeds_slides_csv():
    found = records([f"patient_{p:03d}_node_{n}" for p in range(9) for n in range(3)])
    found[4].split, found[4].info = "test", SlideInfo(split="test")
    found[-1].info = SlideInfo(patient="patient_000")
    assign_random(found, lambda record: True, config())
    splits = {}
    for record in found:
        splits.setdefault(record.patient, set()).add(record.split)
    assert all(len(where) == 1 for where in splits.values())
    assert splits["patient_001"] == {"test"}
    assert found[-1].split == found[0].split


def test_too_few_slides_with_tumour_for_the_splits_is_an_error():
    with pytest.raises(DataError, match="2 slides or patients"):
        assign_random(records(["a", "b", "c"]), lambda record: record.slide != "c", config())


def test_names_of_both_collections():
    assert canonical_name("Tumor_1") == canonical_name("tumour_001") == "tumor_001"
    assert canonical_name("patient_4_node_2") == "patient_004_node_2"
    assert canonical_name("mine") == "mine"
