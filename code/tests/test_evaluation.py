"""The stages evaluate and report on a small run made by the real stages before them."""

import csv
import logging
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from epsam.config.loading import load_config
from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation.methods import Figures, figures_csv, predictions, read_figures
from epsam.inference.models import load_models
from epsam.patches.patch import patches_for_sam
from epsam.pipeline import STAGES
from epsam.report.overview import draw_overview
from epsam.report.result_section import headline
from epsam.results import read_results, record_results
from epsam.runs.record import write_done
from epsam.runs.runner import run_stage, signature_of
from epsam.runs.stage import find_stage
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import read_image, read_mask, write_csv, write_png
from epsam.stages.evaluate import evaluate
from epsam.stages.report import report
from epsam.visualization.drawing import write_jpeg
from epsam.workspace import Workspace
from tests.slide_factory import write_slide

SAM = Path(__file__).parents[2] / "checkpoints" / "sam_demo.pth"
SETTINGS = """\
name: small
workers: 0
patches: {size_px: 64}
classifier: {depth: 18, lr: 1.0e-3, epochs: 1, adl: false}
cam: {layer: layer4, mask_px: 32, percentile: 50, opening_px: 0, rotations: [0]}
prompts: {points: 5}
sam: {model_type: demo, views: 3}
postprocess: {views: 3, cam_weight: 0.5, components: touching_cam, min_region_px: 30}
finetune: {lr: 1.0e-4, epochs: 1}
retrain: {rounds: 1, ids: 0}
student: {epochs: 1}
evaluate: {bootstrap: 50, supervised: true}
"""
SPLITS = {"train": 6, "val": 3, "test": 5}
METHODS = ["ones", "colour", "cam", "sam", "round0", "round1", "student", "supervised", "student_supervised"]


def _write_patches(workspace: Workspace) -> None:
    rng = np.random.default_rng(5)
    for split, count in SPLITS.items():
        for index in range(count):
            for label in (0, 1):
                name = f"slide_{index % 2}_x{index * 64}_y{label * 64}_{label}"
                image = np.full((64, 64, 3), (225, 180, 205)) + rng.normal(0, 6, (64, 64, 3))
                mask = np.zeros((64, 64), bool)
                if label:
                    centre = rng.integers(20, 44, 2).tolist()
                    mask = cv2.circle(mask.astype(np.uint8), centre, 18, 1, -1) > 0
                    image[mask] -= (110, 100, 70)
                    write_png(workspace.split(split) / "mask" / f"{name}.png", mask)
                write_png(workspace.split(split) / "image" / f"{name}.png", image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with all stages done; tests that change it take a copy."""
    top = tmp_path_factory.mktemp("run")
    (top / "small.yaml").write_text(SETTINGS)
    config, workspace = load_config(top / "small.yaml"), Workspace(top, "small")
    _write_patches(workspace)
    workspace.checkpoints.mkdir()
    shutil.copy(SAM, workspace.checkpoints)
    first = find_stage(STAGES, "preprocess")
    write_done(
        workspace.state,
        first.name,
        signature_of(STAGES, first, config, workspace),
        seconds=1.0,
        peak_memory_mib=9,
        device="cpu",
    )
    for stage in ("train-classifier", "embed", "initial-masks", "finetune", "retrain", "distill", "evaluate", "report"):
        run_stage(STAGES, find_stage(STAGES, stage), config, workspace)
    return config, workspace


@pytest.fixture
def copy(made, tmp_path):
    config, workspace = made
    shutil.copytree(workspace.root, tmp_path / "copy")
    return config, Workspace(tmp_path / "copy", "small")


def _evaluate(config: Config, workspace: Workspace) -> dict[str, dict[str, str]]:
    evaluate(config, workspace, choose_hardware("cpu"))
    return {row["method"]: row for row in read_results(workspace) if row["stage"] == "evaluate"}


def test_table_holds_every_method_and_agrees_with_the_masks(made):
    _, workspace = made
    rows = [row for row in read_results(workspace) if row["stage"] == "evaluate"]
    assert [row["method"] for row in rows] == METHODS
    for row in rows:
        found = []
        for path in sorted((workspace.split("test") / "mask").glob("*.png")):
            truth, mask = read_mask(path), read_mask(predictions(workspace, row["method"]) / path.name)
            found.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
        assert row["patches"] == "5"
        assert row["all_patches"] == "10"
        assert float(row["dice"]) == pytest.approx(np.mean(found), abs=1e-4)
        assert float(row["dice_low"]) <= float(row["dice"]) <= float(row["dice_high"])
        assert float(row["dice_slides_low"]) <= float(row["dice"]) <= float(row["dice_slides_high"])
        assert row["slides"] == "2"
        assert row["normal_patches"] == "5"
    assert [row["method"] for row in rows if "pxap" in row] == ["cam"]
    ones = rows[0]
    assert float(ones["recall"]) == 1
    assert float(ones["precision"]) == pytest.approx(
        np.mean([read_mask(path).mean() for path in (workspace.split("test") / "mask").glob("*.png")]), abs=1e-4
    )
    assert float(ones["dice"]) < float(rows[1]["dice"]), "dark tumour on pale tissue is a matter of colour"


def test_inference_predicts_a_test_patch_as_the_evaluation_did(made):
    config, workspace = made
    hardware = choose_hardware("cpu")
    models = load_models(
        config,
        hardware,
        resnet=workspace.classifier,
        sam=None,
        decoder=workspace.decoder(1),
        weights_dir=workspace.checkpoints,
    )
    patches = patches_for_sam(workspace, "test")
    masks = models.masks(np.stack([read_image(p.path) for p in patches]), [p.name for p in patches])
    evaluated = np.stack([read_mask(predictions(workspace, "round1") / f"{p.name}.png") for p in patches])
    assert evaluated.any()
    assert (masks != evaluated).mean() < 0.002


def test_evaluating_anew_gives_the_same_figures(copy):
    config, workspace = copy
    before = read_results(workspace)
    shutil.rmtree(workspace.state / "predictions")
    _evaluate(config, workspace)
    assert read_results(workspace) == before


def test_it_goes_on_after_the_last_whole_method(copy):
    config, workspace = copy
    before = read_results(workspace)
    figures_csv(workspace, "round1").unlink()
    kept = figures_csv(workspace, "sam").stat().st_mtime_ns
    _evaluate(config, workspace)
    assert figures_csv(workspace, "sam").stat().st_mtime_ns == kept
    assert read_results(workspace) == before


def test_normal_patches_count_where_the_classifier_takes_them_for_tumour(copy):
    config, workspace = copy
    shutil.rmtree(workspace.state / "predictions")
    gate = config.inference.model_copy(update={"classifier_probability": 0.0})
    rows = _evaluate(config.model_copy(update={"inference": gate}), workspace)
    normal = [read_mask(path) for path in predictions(workspace, "sam").glob("*_0.png")]
    assert len(normal) == 5
    empty = sum(not mask.any() for mask in normal)
    sam = rows["sam"]
    expected = (5 * float(sam["dice"]) + empty) / 10
    assert float(sam["all_dice"]) == pytest.approx(expected, abs=1e-3)


def test_gate_empties_what_the_classifier_finds_normal():
    figures = Figures(
        ["a", "b", "c", "d"],
        np.array([1, 1, 0, 0]),
        np.array([0.9, 0.1, 0.9, 0.1]),
        np.array([9, 9, 9, 9]),
        np.array([[8, 8, 8], [8, 8, 8], [0, 9, 0], [0, 0, 0]]),
    )
    assert figures.positives().dice == pytest.approx([1, 1], abs=1e-3)
    assert figures.gated(0.5).dice == pytest.approx([1, 0, 0, 1], abs=1e-3)


def test_no_masks_is_said_and_the_report_is_still_made(copy, caplog):
    config, workspace = copy
    shutil.rmtree(workspace.split("test") / "mask")
    with caplog.at_level(logging.WARNING, "epsam"):
        assert _evaluate(config, workspace) == {}
    assert "there are no masks; nothing is measured" in caplog.text
    report(config, workspace, [("preprocess", "cut patches from the slides")])
    assert "The test split has no true masks" in workspace.report.read_text()


def test_masks_of_other_names_and_missing_ones_are_said(copy, caplog):
    config, workspace = copy
    masks = sorted((workspace.split("test") / "mask").iterdir())
    masks[0].unlink()
    with caplog.at_level(logging.WARNING, "epsam"):
        assert _evaluate(config, workspace)["cam"]["patches"] == "4"
        assert "1 of 5 test patches with tumour have no mask" in caplog.text
        for path in masks[1:]:
            path.rename(path.with_name("other_" + path.name))
        _evaluate(config, workspace)
    assert "match no patch by name" in caplog.text


def test_mask_of_another_size_is_named(copy):
    config, workspace = copy
    path = sorted((workspace.split("test") / "mask").iterdir())[0]
    write_png(path, np.ones((32, 32), bool))
    shutil.rmtree(workspace.state / "predictions")
    with pytest.raises(DataError, match=path.name):
        _evaluate(config, workspace)


class _Page(HTMLParser):
    """Collects what a page would load, its images and its headings."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.images, self.headings, self.tags, self.ids = [], [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.links += [attrs[key] for key in ("src", "href") if key in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "img":
            self.images.append(attrs)
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))


def test_report_is_self_contained_and_accessible(made):
    text = made[1].report.read_text()
    page = _Page(text)
    assert len(text) < 8 * 2**20
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "script" not in page.tags
    assert "@import" not in text
    assert "url(" not in text
    assert len(page.images) > 30
    assert all(len(image["alt"]) > 10 for image in page.images)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert "SAM on true masks" in text
    assert "Whole patches" in text
    assert "This result is of doubtful use" in text, "one epoch on six patches is no better than nothing"
    assert re.search(r"slide_[01], x \d+, y \d+ at level 0", text)
    assert "train-classifier" in text


def test_report_shows_failed_slides_and_escapes_what_it_is_given(copy):
    config, workspace = copy
    columns = [
        "slide",
        "path",
        "split",
        "status",
        "reason",
        "reader",
        "reader_version",
        "vendor",
        "width",
        "height",
        "mpp_x",
        "mpp_y",
        "patches_positive",
        "patches_negative",
    ]
    used = dict.fromkeys(columns, "") | {
        "slide": "tumor_001",
        "split": "test",
        "status": "ok",
        "width": 4096,
        "height": 2048,
        "mpp_x": 0.25,
        "reader": "openslide",
        "patches_positive": 3,
    }
    failed = dict.fromkeys(columns, "") | {"slide": "tumor_002", "status": "failed", "reason": "<script>alert(1)"}
    write_csv(workspace.slides_csv, [used, failed], columns)
    write_jpeg(workspace.qa / "tumor_001.jpg", np.full((40, 60, 3), 200, np.uint8))
    report(config, workspace, [("preprocess", "cut patches from the slides")])
    text = workspace.report.read_text()
    assert "script" not in _Page(text).tags
    assert "&lt;script&gt;alert(1)" in text
    assert "2 slides (1 used, 1 failed)" in text
    assert "4,096 × 2,048" in text
    assert "Slide tumor_001 with tissue" in text


def test_report_shows_test_patches_in_their_places_on_the_slides(copy):
    config, workspace = copy
    slide = np.full((200, 500, 3), (225, 180, 205), np.uint8)
    write_slide(workspace.slides / "slide_0.tif", slide, levels=1)
    columns = [
        "slide",
        "path",
        "split",
        "status",
        "reason",
        "reader",
        "reader_version",
        "vendor",
        "width",
        "height",
        "mpp_x",
        "mpp_y",
        "patches_positive",
        "patches_negative",
    ]
    rows = [
        dict.fromkeys(columns, "") | {"slide": name, "path": f"elsewhere/{name}.tif", "split": "test", "status": "ok"}
        for name in ("slide_0", "slide_1")
    ]
    write_csv(workspace.slides_csv, rows, columns)
    report(config, workspace, [("preprocess", "cut patches from the slides")])
    page = _Page(workspace.report.read_text())
    in_place = [image["alt"] for image in page.images if "in their places" in image["alt"]]
    figures = read_figures(figures_csv(workspace, "student"))
    own = [
        d
        for name, label, d in zip(figures.names, figures.labels, figures.dice, strict=True)
        if label and name.startswith("slide_0")
    ]
    assert len(in_place) == 1, "slide_1 is not there any more"
    assert in_place[0].startswith(
        f"Slide slide_0 with the predicted test patches in their places. Dice "
        f"{np.mean(own):.3f} on 3 patches with tumour; 3 normal patches"
    )


def test_overview_shows_pseudo_labels(made, tmp_path):
    config, workspace = made
    draw_overview(config, workspace, choose_hardware("cpu"), tmp_path / "overview.png", rows=2)
    picture = read_image(tmp_path / "overview.png")
    assert picture.shape[1] > 2 * picture.shape[0]
    assert picture.std() > 20


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        ((0.80, 0.85, 0.90), "reaches 0.900: 50% of that gain over the CAM came without them."),
        ((0.889, 0.885, 0.896), "Trained on true masks, the same network reaches 0.896."),
    ],
)
def test_headline_speaks_of_the_gain_where_there_is_one(copy, dice, said):
    config, workspace = copy
    rows = {
        name: {"patches": "5", "dice": str(value), "dice_low": "0", "dice_high": "1"}
        for name, value in zip(("cam", "student", "student_supervised"), dice, strict=True)
    }
    record_results(
        workspace,
        "evaluate",
        [{"method": name} | row for name, row in (rows | dict.fromkeys(("ones", "sam"), rows["cam"])).items()],
    )
    assert headline(config, workspace).endswith(said)


def test_figures_of_each_patch_are_kept(made):
    with figures_csv(made[1], "round1").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 10
    assert all(row["both"] == "0" for row in rows if row["label"] == "0")
