"""`import epsam` in a script or notebook."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import epsam
from epsam.config.loading import find_config, load_config
from epsam.config.paths import settings_for_weights
from epsam.demo.slides import make_demo
from epsam.errors import DataError
from epsam.runtime.checkpoints import save_weights
from epsam.student.network import build_student

NOTEBOOK = Path(__file__).parents[1] / "docs" / "python.ipynb"


def test_everything_that_is_offered_is_there_and_documented():
    for name in epsam.__all__:
        offered = getattr(epsam, name)
        assert name.startswith("__") or (offered.__doc__ and offered.__module__.startswith("epsam."))
    assert set(epsam.__all__) <= set(dir(epsam))
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        _ = epsam.load_modell


def test_importing_it_loads_nothing_else():
    code = "import sys, epsam; assert not {'torch', 'numpy', 'cv2', 'yaml'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_segments_pictures_and_slides(tmp_path):
    make_demo(tmp_path, tumour=1, normal=0, size_px=640, workers=1)
    config = load_config(find_config("demo"))
    weights = build_student(config.classifier).state_dict()
    save_weights(tmp_path / "checkpoints" / "x_student.pth", weights, settings_for_weights(config, None))
    model = epsam.load_model("x", ["profile=cpu"], root=tmp_path)
    probability = model.segment(np.zeros((150, 200, 3), np.uint8))
    assert (probability.shape, probability.dtype) == ((150, 200), np.float32)
    assert 0 <= probability.min() <= probability.max() <= 1
    figures = model.segment_slide(tmp_path / "images" / "tumor_001.tif", tmp_path / "out")
    assert (figures["slide"], figures["mpp_x"]) == ("tumor_001", 0.5)
    assert (tmp_path / "out" / "tumor_001.geojson").is_file()
    with pytest.raises(DataError, match="expected RGB, uint8"):
        model.segment(np.zeros((150, 200)))


def test_the_notebook_runs_from_slides_to_figures(tmp_path, monkeypatch):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in notebook["cells"] if cell.get("outputs")], "outputs stay out of the repository"
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells, 1):
        exec(compile(cell, f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    assert names["run"].report.is_file()
    assert names["figures"]["slide"] == "tumor_001"
    assert names["probability"].shape == names["truth"].shape == (256, 256)
    assert names["truth"].any()
    assert 0 <= names["dice"] <= 1
