"""Records and tables that are read back, and what log lines and tables do with names from elsewhere."""

import csv
import logging

import numpy as np
import pytest

from epsam.errors import DataError
from epsam.evaluation.methods import Figures, read_figures, write_figures
from epsam.patches.patch import patches_for_sam
from epsam.results import read_results, record_results
from epsam.runtime.files import read_csv, write_csv
from epsam.runtime.log import logger, set_up_logging
from epsam.workspace import Workspace
from tests.patch_factory import make_patches


def test_a_line_of_the_log_is_one_line_and_short_whatever_it_names(tmp_path, capsys):
    try:
        set_up_logging(tmp_path / "log.txt")
        logger.warning("slide \x1b[2J\x1b]0;title\x07 \u202egpj.exe\nerror: forged line: skipped")
        logger.warning(f"element <{'x' * 3_000_000}> is ignored")
    finally:
        set_up_logging()
        logging.getLogger().handlers.clear()
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        lines = text.splitlines()
        assert len(lines) == 2
        assert r"slide \x1b[2J\x1b]0;title\x07 \u202egpj.exe error: forged line" in lines[0]
        assert len(lines[1]) < 2100
        assert lines[1].endswith("is ignored")


@pytest.mark.parametrize(
    "name", ["=1+1", "@SUM(A1)", "+x", "-slide", "\t=1", "\n=1", "'=1", "''-x", "'quoted'", "a=1", ""]
)
def test_cells_that_look_like_formulas_are_neutralised_and_read_back(tmp_path, name):
    path = tmp_path / "table.csv"
    write_csv(path, [{"name": name, "x": -3, "y": "-0.25"}], ["name", "x", "y"])
    with path.open(newline="") as stream:
        raw = next(csv.DictReader(stream))
    assert raw["name"] == name or raw["name"] == f"'{name}"
    assert not raw["name"].startswith(("=", "@", "+", "-", "\t", "\r"))
    assert (raw["x"], raw["y"]) == ("-3", "-0.25")
    assert read_csv(path, ["name"]) == [{"name": name, "x": "-3", "y": "-0.25"}]


def test_a_carriage_return_in_a_cell_does_not_begin_a_row(tmp_path):
    write_csv(tmp_path / "table.csv", [{"name": "a\r=1"}], ["name"])
    assert read_csv(tmp_path / "table.csv", ["name"]) == [{"name": r"a\r=1"}]


def _metrics(workspace):
    record_results(workspace, "evaluate", [{"method": "cam", "split": "test", "dice": 0.5, "patches": 4}])
    return workspace.results("evaluate"), lambda: read_results(workspace), "--from evaluate"


def _figures(workspace):
    path = workspace.state / "predictions" / "cam.csv"
    write_figures(path, Figures(["a_1"], np.array([1]), np.array([0.5]), np.array([9]), np.array([[3, 4, 5]])))
    return path, lambda: read_figures(path), "--from evaluate"


def _patches(workspace):
    make_patches(workspace, {"train": 2})
    write_csv(workspace.patches_csv, [{"name": "a_1", "purpose": "all"}], ["name", "purpose"])
    return workspace.patches_csv, lambda: patches_for_sam(workspace, "train"), "--from preprocess"


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (_metrics, "0.5", "half"),
        (_metrics, "0.5", "nan"),
        (_metrics, "rows", "rovs"),
        (_metrics, "}", ""),
        (_metrics, '"4"', "[]"),
        (_metrics, "stage", "stagf"),
        (_figures, ",3,", ",-3,"),
        (_figures, ",3,", ",9,"),
        (_figures, ",0.5,", ",inf,"),
        (_figures, ",1,", ",2,"),
        (_figures, ",4,", ",4e999,"),
        (_figures, "a_1", ""),
        (_patches, "all", "everything"),
        (_patches, "name,", "n,"),
        (_patches, "a_1,all", "a_1"),
    ],
)
def test_a_damaged_table_is_one_line_that_names_file_and_stage(tmp_path, make, old, new):
    path, read, advice = make(Workspace(tmp_path, "small"))
    read()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError) as error:
        read()
    assert str(path) in str(error.value)
    assert advice in str(error.value)
