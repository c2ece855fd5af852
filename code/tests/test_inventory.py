"""Files that change between two stages are named before they are used; a run of the real stages, one file altered."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from epsam.cam.activation_map import ActivationMap
from epsam.cam.store import load_cams, save_cams
from epsam.pipeline import STAGES
from epsam.results import read_results
from epsam.runs.reset import reset
from epsam.runs.runner import run_stage
from epsam.runs.stage import find_stage
from epsam.runtime.files import read_csv
from tests.test_evaluation import copy, made  # noqa: F401  fixtures


def _stage(workspace, *command):
    """A command as ./train.sh calls it: status and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "epsam", *command, "--config", "small.yaml"],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout


def _blacken(path):
    """The same image all black, in a file of the same size."""
    size = path.stat().st_size
    _, data = cv2.imencode(
        ".png", np.zeros_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)), [cv2.IMWRITE_PNG_COMPRESSION, 9]
    )
    assert len(data) <= size
    path.write_bytes(data.tobytes() + bytes(size - len(data)))


def _flip_a_bit(path, place=-40):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _other_figure(path):
    path.write_text(path.read_text().replace('"dice": "0.', '"dice": "0.9', 1))


def _other_maps(path):
    cams = load_cams(path)
    save_cams(path, {name: ActivationMap(1 - cam.values, cam.threshold) for name, cam in cams.items()})


def _first(folder, pattern="*.png"):
    return sorted(folder.glob(pattern))[0]


@pytest.mark.parametrize(
    ("find", "alter", "stage", "of", "anew", "as_it_is"),
    [
        (
            lambda w: _first(w.split("train") / "image"),
            _blacken,
            "train-classifier",
            "preprocess",
            None,
            "train-classifier",
        ),
        (lambda w: _first(w.split("test") / "image"), _blacken, "evaluate", "preprocess", None, "train-classifier"),
        (lambda w: _first(w.split("test") / "mask"), _blacken, "evaluate", "preprocess", None, "evaluate"),
        (lambda w: w.cams("test"), _other_maps, "finetune", "initial-masks", "initial-masks", "finetune"),
        (lambda w: _first(w.pseudo_labels(0)), _blacken, "finetune", "initial-masks", "initial-masks", "finetune"),
        (lambda w: _first(w.split("val") / "initial_mask"), _blacken, "retrain", "finetune", "finetune", "retrain"),
        (lambda w: _first(w.pseudo_labels(1)), _blacken, "distill", "retrain", "retrain", "distill"),
        (lambda w: w.run / "pseudo_labels.csv", _flip_a_bit, "report", "retrain", "retrain", "distill"),
        (lambda w: _first(w.split("val") / "distill"), _blacken, "evaluate", "distill", "distill", "evaluate"),
        (lambda w: w.state / "predictions" / "cam.csv", _flip_a_bit, "report", "evaluate", "evaluate", "report"),
        (lambda w: _first(w.state / "predictions" / "round1"), _blacken, "report", "evaluate", "evaluate", "report"),
        (lambda w: w.results("evaluate"), _other_figure, "report", "evaluate", "evaluate", "report"),
    ],
)
def test_a_changed_file_is_named_with_its_stage_and_what_to_do(copy, find, alter, stage, of, anew, as_it_is):  # noqa: F811
    _, workspace = copy
    path = find(workspace)
    before = path.read_bytes()
    alter(path)
    status, said = _stage(workspace, stage)
    assert status == 1
    line = said.splitlines()[-1]
    assert line.startswith(
        f"error: {path.relative_to(workspace.root)} has changed since the stage {of} was done (1 of "
    )
    assert f"take it as it is (--from {as_it_is})" in line
    assert (f"make it again (--from {anew})" in line) == (anew is not None)
    path.write_bytes(before)
    assert _stage(workspace, stage) == (0, f"{stage}: done already\n")


def test_a_true_mask_that_was_changed_on_purpose_counts_with_from(copy):  # noqa: F811
    config, workspace = copy
    _blacken(_first(workspace.split("test") / "mask"))
    assert _stage(workspace, "retrain") == (0, "retrain: done already\n")  # it does not read true masks
    assert _stage(workspace, "reset", "--from", "report")[0] == 0
    status, said = _stage(workspace, "report")
    assert status == 1
    assert "stage evaluate was run with something else: masks was '14 files" in said
    before = read_results(workspace)
    reset(STAGES, config, workspace, "evaluate")
    run_stage(STAGES, find_stage(STAGES, "evaluate"), config, workspace)
    assert read_results(workspace) != before


def test_a_mask_added_or_taken_away_is_said_as_before(copy):  # noqa: F811
    _, workspace = copy
    mask = _first(workspace.split("test") / "mask")
    away = mask.rename(workspace.root / "away.png")
    status, said = _stage(workspace, "evaluate")
    assert status == 1
    assert "stage evaluate was run with something else: masks was '14 files" in said
    assert _stage(workspace, "retrain") == (0, "retrain: done already\n")
    away.rename(mask)
    assert _stage(workspace, "evaluate") == (0, "evaluate: done already\n")


def test_initial_masks_changed_on_purpose_are_learned_from_with_from(copy):  # noqa: F811
    config, workspace = copy
    mask, before = _first(workspace.pseudo_labels(0)), workspace.decoder(0).read_bytes()
    cv2.imwrite(str(mask), 255 - cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE))
    kept = mask.read_bytes()
    reset(STAGES, config, workspace, "finetune")
    run_stage(STAGES, find_stage(STAGES, "finetune"), config, workspace)
    assert mask.read_bytes() == kept
    assert workspace.decoder(0).read_bytes() != before


def test_figures_changed_in_metrics_csv_are_written_again(copy):  # noqa: F811
    _, workspace = copy
    whole = workspace.metrics_csv.read_bytes()
    rows = read_csv(workspace.metrics_csv, ["stage", "auc"])
    workspace.metrics_csv.write_bytes(whole.replace(rows[0]["auc"].encode(), b"0.987654"))
    assert workspace.metrics_csv.read_bytes() != whole
    status, said = _stage(workspace, "report")
    assert status == 0
    assert "metrics.csv: is not what the stages found; written again from their records" in said
    assert workspace.metrics_csv.read_bytes() == whole


def test_a_flipped_bit_in_a_shard_is_refused_and_made_anew_by_running_again(copy):  # noqa: F811
    config, workspace = copy
    shard = workspace.embeddings("train") / "shard_00000.npy"
    whole = shard.read_bytes()
    _flip_a_bit(shard, 4000)
    status, said = _stage(workspace, "finetune")
    assert status == 1
    assert "train/shard_00000.npy is missing or damaged; run ./train.sh, or the stage embed first" in said
    run_stage(STAGES, find_stage(STAGES, "embed"), config, workspace)
    assert shard.read_bytes() == whole
    for stage in STAGES:
        assert _stage(workspace, stage.name) == (0, f"{stage.name}: done already\n")


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"files": {"../../x": "1 2 3"}, "sha256": "0"}', None])
def test_a_damaged_cache_of_hashes_is_made_anew_and_a_whole_one_stays(copy, damage):  # noqa: F811
    _, workspace = copy
    cache = workspace.state / "hashes.json"
    assert _stage(workspace, "report") == (0, "report: done already\n")
    whole = cache.read_bytes()
    cache.write_bytes(whole.replace(b" 1", b" 2", 1) if damage is None else damage)
    status, said = _stage(workspace, "report")
    assert (status, said.splitlines()[-1]) == (0, "report: done already")
    assert "hashes.json: is not " in said
    written = cache.stat().st_mtime_ns
    assert _stage(workspace, "report") == (0, "report: done already\n")
    assert cache.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "text",
    [
        '{"files": {"a": 1}}',
        "",
        '{"files": {"/etc/passwd": "%s"}}' % ("0" * 64),
        '{"files": {"a/../../b": "%s"}}' % ("0" * 64),
    ],
)
def test_a_damaged_record_of_files_is_named(copy, text):  # noqa: F811
    _, workspace = copy
    (workspace.state / "retrain.files.json").write_text(text)
    status, said = _stage(workspace, "evaluate")
    assert status == 1
    assert "retrain.files.json: is not the record that it should be" in said
