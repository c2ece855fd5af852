"""Every way to bring data, as the page on own data shows it: its lines are run, then the stages at tiny size."""

import json
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from epsam.config.loading import load_config
from epsam.patches.patch import list_patches
from epsam.pipeline import STAGES
from epsam.runs.runner import run_stage
from epsam.workspace import SPLITS, Workspace
from tests.patch_factory import draw_patch
from tests.slide_factory import box_points, draw, write_slide, write_xml
from tests.tiny import TOP

PAGE = TOP / "code" / "docs" / "own-data.md"
ROUTES = dict(re.findall(r"^## (.*?)\n.*?```bash\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
TINY = (
    "workers=0",
    "slides.split_shares=[0.34, 0.33, 0.33]",
    "patches.size_px=64",
    "patches.target_mpp=0.25",
    "patches.train={per_bin: 2, negatives: 8}",
    "patches.val={per_bin: 1, negatives: 4}",
    "patches.test={per_bin: 1, negatives: 4}",
    "patches.tissue={downsample: 4, close_px: 3, median_px: 3}",
    "classifier.epochs=3",
    "classifier.batch=8",
    "classifier.bn_recalibration_batches=4",
    "cam.mask_px=64",
    "cam.threshold=0.2",
    "sam.views=1",
    "postprocess.views=1",
    "finetune.epochs=1",
    "retrain.ids=0.0",
    "evaluate.bootstrap=20",
)
TUMOUR = (96, 64, 224, 208)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Slides, outlines, masks, labels and patches by the names that the page uses."""
    top = tmp_path_factory.mktemp("data")
    lines = ["slide,x,y,label,width"]
    for number in range(1, 7):
        name, tumours = f"case_{number:02d}", [TUMOUR] if number < 4 else []
        image = draw(size=(384, 320), tissue=(16, 16, 368, 304), tumour=tumours, seed=number)
        write_slide(top / "slides" / f"{name}.tif", image)
        for x, y in [(x, y) for x in range(0, 320, 64) for y in range(0, 256, 64)]:
            lines.append(f"{name}.tif,{x},{y},{int(bool(tumours) and 64 <= x < 224 and 64 <= y < 208)},64")
        if tumours:
            write_xml(top / "xml" / f"{name}.xml", [("Tumor", box_points(TUMOUR))])
            (top / "geojson").mkdir(exist_ok=True)
            (top / "geojson" / f"{name}.geojson").write_text(json.dumps(feature(box_points(TUMOUR))))
            mask = np.ones((160, 192), np.uint8)
            mask[32:104, 48:112] = 2
            (top / "masks").mkdir(exist_ok=True)
            cv2.imwrite(str(top / "masks" / f"{name}_mask.png"), mask)
    (top / "labels.csv").write_text("\n".join(lines))
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for number in range(8):
            image, mask = draw_patch(rng, number % 2 == 1, 64)
            folder = "tumor_epithelium" if number % 2 else "adipose"
            save(top / "patches" / split / folder / f"{number}.jpg", image)
            save(top / "cut" / split / "image" / f"p{number}_{number % 2}.png", image)
            if number % 2:
                save(top / "cut" / split / "mask" / f"p{number}_1.png", mask.astype(np.uint8) * 255)
    return top


def feature(points: list[tuple[float, float]]) -> dict[str, object]:
    ring = [list(point) for point in (*points, points[0])]
    about = {"objectType": "annotation", "classification": {"name": "Tumor"}}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": geometry, "properties": about}]}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])


def paste(route: str, data: Path, top: Path) -> tuple:
    """Run the lines of a route in a folder that has the data; gives settings and paths of the run."""
    for path in data.iterdir():
        (top / path.name).symlink_to(path)
    (top / "checkpoints").mkdir()
    (top / "checkpoints" / "sam_demo.pth").symlink_to(TOP / "checkpoints" / "sam_demo.pth")
    (top / "train.sh").write_text('#!/bin/sh\necho "$1" > asked_for\n')  # the stages are run below, with tiny settings
    (top / "train.sh").chmod(0o755)
    subprocess.run(["bash", "-euc", ROUTES[route]], cwd=top, check=True, capture_output=True)
    config = load_config(top / (top / "asked_for").read_text().strip(), TINY)
    return config, Workspace(top, config.name)


def test_the_page_has_the_routes_that_its_table_lists():
    listed = re.findall(r"\| \[(.*?)\]\(#", PAGE.read_text())
    assert listed == list(ROUTES)
    assert len(ROUTES) == 7


@pytest.mark.parametrize("route", ROUTES)
def test_each_route_trains_a_classifier(route, data, tmp_path):
    config, workspace = paste(route, data, tmp_path)
    for stage in STAGES[:2]:
        run_stage(STAGES, stage, config, workspace)
    assert workspace.classifier.is_file()
    for split in SPLITS:
        assert {patch.label for patch in list_patches(workspace.split(split))} == {0, 1}


@pytest.mark.parametrize("route", ["Labelled windows", "Patches with masks"])
def test_the_rest_of_the_stages_runs_with_and_without_masks(route, data, tmp_path):
    config, workspace = paste(route, data, tmp_path)
    for stage in STAGES:
        run_stage(STAGES, stage, config, workspace)
    assert workspace.report.is_file()
    assert workspace.used_decoder.is_file()
    assert ("dice" in workspace.metrics_csv.read_text()) == (route == "Patches with masks")
