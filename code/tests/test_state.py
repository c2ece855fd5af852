"""A run that is stopped, doubled, changed or damaged: what it goes on from, and what it refuses."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from epsam.config.loading import load_config
from epsam.errors import DataError, EpsamError, StateError
from epsam.patches.tables import PATCH_COLUMNS
from epsam.pipeline import STAGES
from epsam.runs.lock import lock, release, start_of
from epsam.runs.record import check_signature, read_state, write_done
from epsam.runs.reset import reset
from epsam.runs.runner import finished_stages, run_stage, signature_of
from epsam.runs.stage import find_stage
from epsam.runtime.checkpoints import load_weights, save_weights
from epsam.runtime.files import write_csv, write_png, write_text
from epsam.runtime.log import logger, set_up_logging
from epsam.runtime.sidecar import sidecar_path
from epsam.workspace import SPLITS, Workspace
from tests.patch_factory import make_patches

SETTINGS = """\
name: small
patches: {size_px: 64}
classifier: {depth: 18, lr: 1.0e-3, epochs: 500, early_stop: 500}
cam: {layer: layer4, percentile: null, threshold: 0.4, mask_px: 64}
sam: {model_type: demo}
retrain: {rounds: 2}
"""


@pytest.fixture
def holder():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_second_run_is_refused_and_a_stale_lock_taken_over(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("EPSAM_OWNER_PID", str(holder.pid))
    with lock(tmp_path):
        pass
    with lock(tmp_path):  # another stage of the same owner
        pass
    monkeypatch.delenv("EPSAM_OWNER_PID")
    with pytest.raises(StateError, match=f"in use by process {holder.pid}"), lock(tmp_path):
        pass
    holder.kill()
    while start_of(holder.pid):  # from here on it is dead, but still in the table of processes
        time.sleep(0.01)
    with lock(tmp_path):
        assert str(os.getpid()) in json.loads((tmp_path / "lock").read_text())["processes"]
    assert not (tmp_path / "lock").exists()


def test_a_stage_still_at_work_holds_the_lock_when_its_script_was_killed(tmp_path, holder):
    gone = {"1234567": "1", str(holder.pid): start_of(holder.pid)}
    _write_lock(tmp_path, processes=gone)
    with pytest.raises(StateError, match=f"in use by process {holder.pid} on "), lock(tmp_path):
        pass


def test_a_process_of_the_same_number_started_later_does_not_hold_the_lock(tmp_path, holder):
    _write_lock(tmp_path, processes={str(holder.pid): "1"})
    with lock(tmp_path):
        pass


ELSEWHERE = [{"host": "elsewhere", "boot": "another"}, {"namespace": "pid:[1]"}]
"""A lock of another machine, and of a container of the same host name with process numbers of its own."""


def _write_lock(folder, **values):
    """A lock as if it were of another process: of this machine, but for `values`."""
    with lock(folder):
        record = json.loads((folder / "lock").read_text())
    (folder / "lock").write_text(json.dumps(record | {"processes": {"1": "1"}} | values))
    return folder / "lock"


@pytest.mark.parametrize("place", ELSEWHERE)
def test_lock_of_another_host_or_container_is_respected_while_it_has_a_heartbeat(tmp_path, place, monkeypatch):
    path = _write_lock(tmp_path, **place)
    with pytest.raises(StateError, match=r"process 1 on .*last heartbeat.*delete"), lock(tmp_path):
        pass
    monkeypatch.setattr("epsam.runs.lock.BEAT_S", 0.1)
    os.utime(path, (1, 1))  # as old as it seems when a clock was set, but touched again while it is watched
    beats = threading.Timer(0.05, path.touch)
    beats.start()
    with pytest.raises(StateError, match="process 1 on "), lock(tmp_path):
        pass
    beats.join()


@pytest.mark.parametrize("place", ELSEWHERE)
def test_lock_of_another_host_without_heartbeat_is_taken_over(tmp_path, place, monkeypatch, caplog):
    monkeypatch.setattr("epsam.runs.lock.BEAT_S", 0.01)
    os.utime(_write_lock(tmp_path, **place), (1, 1))
    with lock(tmp_path):
        assert str(os.getpid()) in json.loads((tmp_path / "lock").read_text())["processes"]
    assert "gave no heartbeat for 180 s and is taken for gone" in caplog.text


def test_the_holder_of_a_lock_gives_a_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr("epsam.runs.lock.BEAT_S", 0.01)
    with lock(tmp_path):
        os.utime(tmp_path / "lock", (1, 1))
        while (tmp_path / "lock").stat().st_mtime < 2:
            time.sleep(0.01)


HOLD = (
    "import sys; from pathlib import Path; from epsam.runs.lock import lock\n"
    "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_holder_of_another_pid_namespace_excludes_by_its_flock_alone(tmp_path, place, monkeypatch):
    monkeypatch.setattr("epsam.runs.lock.PATIENCE_S", 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        record = json.loads((tmp_path / "lock").read_text())
        (tmp_path / "lock").write_text(json.dumps(record | place))
        os.utime(tmp_path / "lock", (1, 1))  # stopped, say, by a debugger: no heartbeat
        with pytest.raises(StateError, match="in use by another process"), lock(tmp_path):
            pass
        process.stdin.close()
        process.wait()


def test_a_guard_that_is_a_link_is_refused_and_its_target_kept(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock_guard").symlink_to(tmp_path / "mine")
    with pytest.raises(StateError, match=r"\.lock_guard is a link"), lock(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_lock_ends_with_the_script_and_not_before(tmp_path, monkeypatch):
    monkeypatch.setenv("EPSAM_OWNER_PID", str(os.getpid()))
    with lock(tmp_path):
        release(tmp_path)
        assert (tmp_path / "lock").is_file()
    monkeypatch.setenv("EPSAM_OWNER_PID", "1")
    release(tmp_path)  # by another script
    assert (tmp_path / "lock").is_file()
    monkeypatch.setenv("EPSAM_OWNER_PID", str(os.getpid()))
    release(tmp_path)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": 1}', '{"host": "x", "processes": {"one": 1}}'])
def test_a_lock_that_is_not_whole_is_taken_over(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with lock(tmp_path):
        pass


def test_changed_settings_are_named():
    check_signature("embed", {"sam.views": 4}, {"sam.views": 4})
    with pytest.raises(StateError, match=r"stage embed .*sam.views was 4, is 8.*--from embed"):
        check_signature("embed", {"sam.views": 4, "epsam": "1"}, {"sam.views": 8, "epsam": "1"})


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"done": true, "signature": 3}', "[" * 9999])
def test_a_damaged_record_of_a_stage_is_named(tmp_path, content):
    (tmp_path / "embed.json").write_text(content)
    with pytest.raises(DataError, match=r"embed\.json.*delete it"):
        read_state(tmp_path, "embed")


@pytest.fixture
def run(tmp_path):
    """Settings and workspace of a run on brought patches whose stages up to finetune are noted as done."""
    (tmp_path / "small.yaml").write_text(SETTINGS)
    config, workspace = load_config(tmp_path / "small.yaml"), Workspace(tmp_path, "small")
    make_patches(workspace, {"train": 6, "val": 3, "test": 3})
    for stage in STAGES[:-4]:
        for output in stage.output_paths(config, workspace):
            if not output.is_dir():
                write_text(output, "made before")
        write_done(workspace.state, stage.name, signature_of(STAGES, stage, config, workspace))
    return config, workspace


def test_a_stage_alone_does_not_go_on_over_changed_settings_of_one_before(run, tmp_path):
    _, workspace = run
    changed = load_config(tmp_path / "small.yaml", ("cam.threshold=0.6",))
    with pytest.raises(StateError, match=r"stage initial-masks was run with something else: cam.threshold was 0.4, is"):
        run_stage(STAGES, find_stage(STAGES, "retrain"), changed, workspace)


def test_stages_are_finished_up_to_the_first_with_anything_to_do_or_to_report(run, tmp_path):
    config, workspace = run

    def names(*overrides):
        changed = load_config(tmp_path / "small.yaml", overrides) if overrides else config
        return [stage.name for stage in finished_stages(STAGES, changed, workspace)]

    assert names() == ["preprocess", "train-classifier", "embed", "initial-masks", "finetune"]
    assert names("cam.threshold=0.6") == ["preprocess", "train-classifier", "embed"]
    (workspace.root / "checkpoints/small_resnet_adl.pth").write_text("changed since")
    assert names() == ["preprocess"]
    (workspace.root / "checkpoints/small_resnet_adl.pth").unlink()
    assert names() == ["preprocess"]
    (workspace.state / "preprocess.json").write_text("{")
    assert names() == []


def test_changed_patches_and_another_version_of_the_program_are_named(run):
    config, workspace = run
    next((workspace.split("val") / "image").iterdir()).unlink()
    with pytest.raises(StateError, match=r"train-classifier .*patches was '24 files, \w+', is '23 files, \w+'"):
        run_stage(STAGES, find_stage(STAGES, "train-classifier"), config, workspace)
    record = workspace.state / "train-classifier.json"
    record.write_text(record.read_text().replace('"epsam": "', '"epsam": "0.'))
    with pytest.raises(StateError, match=r"epsam was '0\.\d.*', is '"):
        run_stage(STAGES, find_stage(STAGES, "train-classifier"), config, workspace)


def test_slides_may_go_once_the_patches_are_cut(run):
    config, workspace = run
    stage = find_stage(STAGES, "preprocess")
    write_text(workspace.slides / "a.tif", "a slide")
    write_done(workspace.state, stage.name, signature_of(STAGES, stage, config, workspace))
    shutil.rmtree(workspace.slides)
    run_stage(STAGES, stage, config, workspace)
    write_text(workspace.slides / "b.tif", "another slide")
    with pytest.raises(StateError, match="slides was '1 files"):
        run_stage(STAGES, stage, config, workspace)


def test_starting_over_keeps_patches_that_could_not_be_cut_again(run, caplog):
    config, workspace = run
    write_text(workspace.patches_csv, ",".join(PATCH_COLUMNS) + "\n")
    reset(STAGES, config, workspace, "preprocess")
    assert "the patches that are there stay" in caplog.text
    assert len(list((workspace.split("train") / "image").iterdir())) == 12
    assert {path.name for path in workspace.state.glob("*.json")} == {"hashes.json"}
    assert not workspace.classifier.exists()
    write_text(workspace.slides / "a.tif", "a slide")
    _record_patches(workspace)
    reset(STAGES, config, workspace, "preprocess")
    assert not workspace.split("train").exists()


def _record_patches(workspace):
    """Write patches.csv as if the patches that are there had been cut."""
    rows = [
        {"name": path.stem, "split": split} for split in SPLITS for path in (workspace.split(split) / "image").iterdir()
    ]
    write_csv(workspace.patches_csv, rows, PATCH_COLUMNS)


def test_starting_over_removes_recorded_patches_behind_a_link_and_keeps_files_of_others(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="epsam")
    config, workspace = run
    _record_patches(workspace)
    write_text(workspace.slides / "a.tif", "a slide")
    workspace.split("val").rename(tmp_path / "elsewhere")
    workspace.split("val").symlink_to(tmp_path / "elsewhere")
    mine = [
        workspace.split("train") / "mask" / "drawn_by_hand.png",
        workspace.split("train") / "notes" / "a.txt",
        workspace.split("test") / "a.txt",
    ]
    for path in mine:
        write_text(path, "mine")
    reset(STAGES, config, workspace, "preprocess")
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert not list(tmp_path.glob("elsewhere/*/*"))
    assert not list((workspace.split("train")).rglob("slide_*.png"))
    assert "36 images and masks removed" in caplog.text
    assert "1 files that patches.csv does not record stay, e.g. drawn_by_hand.png" in caplog.text


def test_a_table_of_patches_that_names_files_elsewhere_removes_none_of_them(run, tmp_path):
    config, workspace = run
    victim = tmp_path / "victim.png"
    write_text(victim, "mine")
    write_csv(
        workspace.patches_csv,
        [{"name": str(victim)[:-4], "split": "train"}, {"name": "../../../../victim", "split": "../train"}],
        PATCH_COLUMNS,
    )
    write_text(workspace.slides / "a.tif", "a slide")
    reset(STAGES, config, workspace, "preprocess")
    assert victim.read_text() == "mine"
    assert len(list((workspace.split("train") / "image").iterdir())) == 12


def test_weights_that_an_earlier_run_left_are_neither_taken_for_this_ones_nor_deleted(run, caplog):
    """The folder of the run was deleted, its weights were not: rounds must not count as done."""
    config, workspace = run
    for number in (1, 2, 3):
        write_text(workspace.decoder(number), f"{number} of an earlier run with three rounds")
        write_text(sidecar_path(workspace.decoder(number)), f"settings {number}")
    with pytest.raises(EpsamError):
        run_stage(STAGES, find_stage(STAGES, "retrain"), config, workspace)
    for number in (1, 2, 3):
        kept = workspace.checkpoints / f"small_decoder_iter{number}.1.pth"
        assert kept.read_text() == f"{number} of an earlier run with three rounds"
        assert sidecar_path(kept).read_text() == f"settings {number}"
        assert f"small_decoder_iter{number}.pth is kept as {kept.name}" in caplog.text
        assert not workspace.decoder(number).exists()
        assert not sidecar_path(workspace.decoder(number)).exists()


def test_weights_are_renamed_when_a_stage_is_to_run_anew(run):
    config, workspace = run
    reset(STAGES, config, workspace, "train-classifier")
    write_text(workspace.classifier, "made after that")
    reset(STAGES, config, workspace, "train-classifier")
    files = sorted(path.name for path in workspace.checkpoints.iterdir())
    assert files == ["small_resnet_adl.1.pth", "small_resnet_adl.2.pth", "small_sam_pre_decoder.1.pth"]
    assert (workspace.checkpoints / "small_resnet_adl.2.pth").read_text() == "made after that"


def test_weights_of_a_second_training_do_not_replace_those_of_the_first(tmp_path):
    path = tmp_path / "small_decoder_supervised.pth"
    for value in (1.0, 1.0, 2.0):
        save_weights(path, {"x": torch.tensor([value])}, {"name": "small"})
    assert load_weights(path)["x"].item() == 2
    assert load_weights(tmp_path / "small_decoder_supervised.1.pth")["x"].item() == 1
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == [
        "small_decoder_supervised.1.pth",
        "small_decoder_supervised.pth",
    ]


def test_an_unknown_stage_is_refused_before_anything_is_forgotten(run):
    config, workspace = run
    with pytest.raises(StateError, match="no stage `retrian`; the stages are preprocess, train-classifier"):
        reset(STAGES, config, workspace, "retrian")
    assert read_state(workspace.state, "preprocess")["done"]


def test_a_stage_whose_result_was_deleted_runs_again(run, caplog):
    config, workspace = run
    workspace.decoder(0).unlink()
    with pytest.raises(EpsamError):
        run_stage(STAGES, find_stage(STAGES, "finetune"), config, workspace)
    assert "small_sam_pre_decoder.pth is missing; the stage runs again" in caplog.text


def test_patches_can_be_brought_without_slides(tmp_path):
    (tmp_path / "small.yaml").write_text(SETTINGS)
    config, workspace = load_config(tmp_path / "small.yaml"), Workspace(tmp_path, "small")
    write_png(workspace.split("train") / "image" / "mine_1.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DataError, match="no slides"):
        run_stage(STAGES, STAGES[0], config, workspace)
    make_patches(workspace)
    run_stage(STAGES, STAGES[0], config, workspace)
    assert read_state(workspace.state, "preprocess")["done"]


def _wait_for(path, text, process):
    """Until `text` is in the file; fails when the process ends before."""
    while not (path.is_file() and text in path.read_text()):
        assert process.poll() is None, path.read_text()
        time.sleep(0.05)


@pytest.fixture
def start(top):
    """Start a command in `top`; what still runs at the end, with all it started, is killed."""
    started = []

    def popen(*command, sigint=signal.SIG_DFL):
        started.append(
            subprocess.Popen(
                command,
                cwd=top,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
                # As at a terminal, also where the tests run in the background.
                preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
            )
        )
        return started[-1]

    yield popen
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_stopped_training_says_how_to_go_on_and_goes_on(top, start):
    (top / "small.yaml").write_text(SETTINGS)
    make_patches(Workspace(top, "small"), {"train": 4, "val": 2, "test": 2})
    log = top / "logging_small.txt"
    script = start("./train.sh", "small.yaml", sigint=signal.SIG_IGN)  # in the background
    _wait_for(log, "classifier: epoch 1/", script)
    script.kill()  # the script alone: its stage gets SIGTERM, so as not to work on behind the back of the next
    while "stopped. What was finished is kept; run the same command again to continue" not in log.read_text():
        time.sleep(0.05)
    log.unlink()
    stage = start(".venv/bin/python", "-m", "epsam", "train-classifier", "--config", "small.yaml")
    _wait_for(log, "classifier: continuing after epoch", stage)
    stage.send_signal(signal.SIGINT)
    assert stage.wait() == 130
    assert "stopped. What was finished is kept; run the same command again to continue" in log.read_text()


def test_the_lock_is_gone_when_the_script_has_ended(top, start):
    (top / "small.yaml").write_text(SETTINGS)
    make_patches(Workspace(top, "small"), {"train": 4, "val": 2, "test": 2})
    script = start("./train.sh", "small.yaml")
    _wait_for(top / "logging_small.txt", "classifier: epoch 1/", script)
    assert (top / "runs" / "small" / "lock").is_file()
    os.killpg(script.pid, signal.SIGINT)  # as Ctrl-C does
    assert script.wait() == 130
    assert not (top / "runs" / "small" / "lock").exists()


def test_a_log_that_cannot_be_written_is_said_once_and_stops_nothing(capsys):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip(f"needs {full}")
    try:
        set_up_logging(full)
        logger.info("first")
        logger.info("second")
    finally:
        set_up_logging()
        logging.getLogger().handlers.clear()
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "first"
    assert said.out.count("lines are missing from here on") == 1
    assert "second" in said.out
    assert "Traceback" not in said.out + said.err
