"""Whole test slides against their annotations: which count, and which pixels."""

import numpy as np
import pytest
import torch

from epsam.config.paths import settings_for_weights
from epsam.config.schema import Classifier, Config
from epsam.errors import DataError
from epsam.evaluation.slides import (
    comparable_slides,
    compare_slides,
    read_slide_figures,
    slides_row,
    write_slide_figures,
)
from epsam.inference.pyramid import write_pyramid
from epsam.inference.test_slides import predict_test_slides
from epsam.runtime.checkpoints import save_weights
from epsam.runtime.device import choose_hardware
from epsam.stages.preprocess import preprocess
from epsam.student.network import build_student
from epsam.workspace import Workspace
from tests.slide_factory import GROUPS, box_points, draw, make_dataset, write_slide, write_xml
from tests.test_slides_preprocess import config

SIZE = (768, 640)
CLASSIFIER = Classifier(depth=18, high_frequency=False, adl=False)
BOX = (128, 192, 384, 448)
REGION = (100, 100, 400, 320)


@pytest.fixture
def ws(tmp_path):
    """Test slides: tumor_001 with a box of tumour, tumor_002 with a region of interest, normal_001, and one with labels."""
    workspace = Workspace(tmp_path, "mine")
    make_dataset(workspace.dataset, tumour=2, normal=1, first=5)
    images, annotations = workspace.slides, workspace.annotations
    for number, outlines in ((1, [("Tumor", BOX)]), (2, [("Tumor", BOX), ("Region", REGION)])):
        write_slide(images / f"tumor_{number:03d}.tif", draw(tumour=[BOX], seed=number))
        write_xml(
            annotations / f"tumor_{number:03d}.xml",
            [(group, box_points(box)) for group, box in outlines],
            ("Tumor", "Region"),
        )
    for name in ("normal_001", "labelled"):
        write_slide(images / f"{name}.tif", draw(tumour=[BOX] if name == "labelled" else [], seed=7))
    (workspace.dataset / "labels.csv").write_text("slide,x,y,label\nlabelled,200,250,tumour\nlabelled,500,300,normal\n")
    test = ("tumor_001", "tumor_002", "normal_001", "labelled")
    rest = {"tumor_005": "train", "normal_005": "train", "tumor_006": "val"}
    splits = dict.fromkeys(test, "test") | rest
    rows = [f"{name},{split},{'normal' if name.startswith('normal') else ''}" for name, split in splits.items()]
    (workspace.dataset / "slides.csv").write_text("\n".join(["slide,split,label", *rows]) + "\n")
    return workspace


def painted(box: tuple[int, int, int, int]) -> int:
    """Pixels that ASAP paints for a box: those strictly inside."""
    return (box[2] - box[0] - 1) * (box[3] - box[1] - 1)


def predict(ws, name: str, box: tuple[int, int, int, int], size=SIZE) -> None:
    """Write <name>_mask.tif as inference does, 255 in `box` (x0, y0, x1, y1)."""
    mask = np.zeros((1024, 1024), np.uint8)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 255

    def tile(x: float, y: float, side: int, downsample: float) -> np.ndarray:
        step = round(downsample)
        part = mask[round(y) :: step, round(x) :: step][:side, :side]
        return np.pad(part, ((0, side - part.shape[0]), (0, side - part.shape[1])))

    ws.test_slides.mkdir(parents=True, exist_ok=True)
    write_pyramid(ws.test_slides / f"{name}_mask.tif", tile, [size, (384, 320)], (0.25, 0.25))


def test_slides_annotated_in_full_or_normal_are_compared_pixel_by_pixel(ws):
    settings = config(slides={"unannotated": "exclude", "groups": GROUPS | {"roi": ["Region"]}})
    preprocess(settings, ws)
    records = comparable_slides(settings, ws)
    assert sorted(records) == ["normal_001", "tumor_001", "tumor_002"]

    predict(ws, "tumor_001", (128, 192, 320, 576))  # three quarters of the box, and as much again below it
    predict(ws, "tumor_002", (0, 0, 768, 640))
    predict(ws, "normal_001", (512, 512, 612, 612))
    write_slide_figures(ws, compare_slides(settings, ws, records, ws.test_slides))
    found = {one.slide: one for one in read_slide_figures(ws)}

    one = found["tumor_001"]
    both = painted((128, 192, 320, 448))
    assert (one.both_px, one.predicted_px, one.true_px) == (both, 192 * 384, painted(BOX))
    assert one.dice == pytest.approx(2 * both / (192 * 384 + painted(BOX)), abs=1e-4)
    assert one.precision == pytest.approx(2 / 3, abs=0.01)
    assert one.recall == pytest.approx(3 / 4, abs=0.01)
    assert one.false_mm2 == pytest.approx((192 * 384 - both) * 0.25**2 / 1e6)
    two, true = found["tumor_002"], painted((128, 192, 384, 320))
    assert (two.both_px, two.predicted_px, two.true_px) == (true, painted(REGION), true), "only the region counts"
    normal = found["normal_001"]
    assert (normal.dice, normal.precision, normal.recall) == (None, pytest.approx(0, abs=1e-3), None)

    row = slides_row(settings, "student", list(found.values()))
    overlaps = [(o.both_px, o.predicted_px, o.true_px) for o in found.values()]
    both, predicted, true = np.sum(overlaps, axis=0)
    assert row["all_pooled_dice"] == pytest.approx(2 * both / (predicted + true), abs=1e-4)
    assert row["worst_dice"] == two.dice
    assert (row["normal_slides"], row["normal_false_mm2"]) == (1, pytest.approx(1e4 * 0.25**2 / 1e6))


def test_a_mask_of_another_size_is_refused(ws):
    settings = config(slides={"unannotated": "exclude", "groups": GROUPS | {"ignore": ["Region"]}})
    preprocess(settings, ws)
    predict(ws, "tumor_001", BOX, size=(760, 640))
    with pytest.raises(DataError, match="760 x 640 px, its slide has 768 x 640"):
        compare_slides(settings, ws, {"tumor_001": comparable_slides(settings, ws)["tumor_001"]}, ws.test_slides)


def test_a_single_slide_that_cannot_be_read_is_a_warning(ws, caplog):
    broken = ws.slides / "tumor_001.tif"
    broken.write_bytes(b"II*\0" + bytes(60))
    settings = Config(name="mine", workers=0, classifier=CLASSIFIER)
    torch.manual_seed(0)
    student = build_student(settings.classifier)
    save_weights(ws.student, student.state_dict(), settings_for_weights(settings, 0.25), mpp=0.25)
    assert predict_test_slides(settings, ws, choose_hardware("cpu"), [broken]) == set()
    assert "tumor_001.tif" in caplog.text
    assert not list(ws.test_slides.glob("*_mask.tif"))


def test_what_an_earlier_model_predicted_is_not_compared(ws, caplog):
    settings = Config(name="mine", workers=0, classifier=CLASSIFIER)
    slides = [ws.slides / "tumor_001.tif", ws.slides / "normal_001.tif"]
    for seed in (0, 1):
        torch.manual_seed(seed)
        weights = build_student(settings.classifier).state_dict()
        save_weights(ws.student, weights, settings_for_weights(settings, 0.25), mpp=0.25)
        predicted = predict_test_slides(settings, ws, choose_hardware("cpu"), slides)
        if seed == 0:
            assert predicted == {"tumor_001", "normal_001"}
            slides[1].unlink()  # the call fails before it looks at what lies in its folder
    assert predicted == set()
    assert "normal_001.tif" in caplog.text
