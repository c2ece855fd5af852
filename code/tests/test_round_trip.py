"""From ./infer.sh through QuPath to the next training: predicted outlines, corrected and saved, label its patches."""

import csv
import gzip
import json
import uuid
from pathlib import Path

import pytest
import shapely
import torch
from click.testing import CliRunner
from shapely.geometry import box, mapping, shape

from epsam.cli import cli
from epsam.config.loading import load_config
from epsam.config.paths import settings_for_weights
from epsam.runtime.checkpoints import save_weights
from epsam.runtime.files import read_mask
from epsam.student.network import build_student
from epsam.workspace import Workspace
from tests.slide_factory import draw, write_leica, write_slide

SETTINGS = """\
name: mine
workers: 0
slides: {split_shares: [0.34, 0.33, 0.33], groups: {tumour: [Tumor], hole: [Exclusion], ignore: [Ignore*]}}
patches:
  size_px: 64
  train: {per_bin: 4, negatives: 8}
  val: {per_bin: 4, negatives: 8}
  test: {per_bin: 4, negatives: 8}
  tissue: {downsample: 4, close_px: 3, median_px: 3}
classifier: {depth: 18}
cam: {layer: layer4, mask_px: 64}
sam: {model_type: demo}
inference: {classifier_probability: 0, threshold: 0.01, overlap: 0, min_focus_um2: 31.25}
"""
CORNER = (320, 192)
"""Where the scanned area begins on the glass of case_01; QuPath counts from there."""
KEPT, HOLE = box(60, 60, 260, 250), box(120, 110, 190, 180)
ADDED = shapely.union(box(285, 70, 330, 130), box(290, 180, 340, 240))


@pytest.fixture
def workspace(tmp_path):
    """Settings, three slides and a student that was trained nowhere."""
    workspace = Workspace(tmp_path, "mine")
    (tmp_path / "mine.yaml").write_text(SETTINGS)
    config = load_config(tmp_path / "mine.yaml")
    torch.manual_seed(0)
    student = build_student(config.classifier).state_dict()
    save_weights(tmp_path / "student.pth", student, settings_for_weights(config, 0.25), mpp=0.25)
    image = draw(size=(384, 320), tissue=(16, 16, 368, 304))
    workspace.slides.mkdir(parents=True)
    write_leica(workspace.slides / "case_01.scn", image, CORNER, (1024, 768), mpp=0.25)
    for name in ("case_02.tif", "case_03.ome.tif"):
        write_slide(workspace.slides / name, image)
    return workspace


def run(*arguments: str | Path, **variables: Path) -> str:
    environment = {name: str(value) for name, value in variables.items()}
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], env=environment)
    assert done.exception is None, f"{done.output}\n{done.exception}"
    return done.output


def correct_in_qupath(path: Path, target: Path) -> shapely.Geometry:
    """Change predicted outlines and write them as QuPath exports objects; gives the tumour in its frame."""
    features = json.loads(path.read_text())["features"]
    predicted = shapely.union_all([shape(feature["geometry"]) for feature in features])
    tumour = shapely.union(shapely.difference(shapely.intersection(predicted, KEPT), HOLE), ADDED)
    whole = [part for part in shapely.get_parts(tumour) if part.geom_type == "Polygon"]
    objects = [
        (whole[0], {"name": "Tumor", "color": [200, 0, 0]}, features[0]["properties"]),
        (shapely.MultiPolygon(whole[1:]), {"names": ["Tumor"], "color": [200, 0, 0]}, {}),
        (box(20, 20, 50, 50), {"name": "Ignore*", "color": [180, 180, 180]}, {}),
        (shapely.Point(30, 30), {"name": "Tumor", "color": [200, 0, 0]}, {"name": "a note"}),
    ]
    saved = [
        {
            "type": "Feature",
            "id": str(uuid.UUID(int=number)),
            "geometry": mapping(geometry) | {"plane": {"c": -1, "z": 0, "t": 0}},
            "properties": about | {"objectType": "annotation", "classification": group, "isLocked": number == 0},
        }
        for number, (geometry, group, about) in enumerate(objects)
    ]
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(gzip.compress(json.dumps({"type": "FeatureCollection", "features": saved}, indent=2).encode()))
    return tumour


def test_predicted_outlines_corrected_in_qupath_label_the_next_training(workspace):
    top, output = workspace.root, workspace.root / "out"
    run(
        "infer",
        *("--root", top, workspace.slides, "--output", output, "profile=cpu"),
        STUDENT_CHECKPOINT=top / "student.pth",
    )
    expected = {}
    for name, file in (("case_01", "case_01"), ("case_02", "case_02.tif"), ("case_03", "case_03.ome.tif")):
        target = workspace.annotations / f"{file}.geojson.gz"
        tumour = correct_in_qupath(output / f"{name}.geojson", target)
        expected[name] = shapely.affinity.translate(tumour, *CORNER) if name == "case_01" else tumour
        assert tumour.area > 20_000
    log = run("preprocess", "--root", top, "--config", top / "mine.yaml")
    assert "failed" not in log
    with workspace.patches_csv.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    masks = 0
    for row in rows:
        window = box(*(int(row[key]) + shift for shift in (0, 64) for key in "xy"))
        share = shapely.intersection(expected[row["slide"]], window).area / 64**2
        assert float(row["tumour_fraction"]) == pytest.approx(share, abs=0.03), row["name"]
        mask = workspace.split(row["split"]) / "mask" / f"{row['name']}.png"
        if mask.is_file():
            masks += 1
            assert read_mask(mask).mean() == pytest.approx(share, abs=0.03), row["name"]
    assert masks > 6
    assert {(row["slide"], row["label"]) for row in rows if row["chosen"] == "1"} == {
        (slide, label) for slide in expected for label in "01"
    }
