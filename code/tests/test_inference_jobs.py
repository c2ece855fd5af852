"""Several jobs in one OUTPUT_DIR: each slide by one of them, whatever is killed; what cannot work side by side is refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from epsam.config.loading import load_config
from epsam.errors import StateError
from epsam.runs import claims as claims_module
from epsam.runs.claims import Claims
from epsam.runtime.checkpoints import save_weights
from epsam.student.network import build_student
from tests.slide_factory import draw, spoil_tag, write_slide
from tests.test_inference_output import place  # noqa: F401 fixture
from tests.test_inference_run import rows_of
from tests.tiny import SETTINGS


@pytest.fixture
def start(tmp_path):
    """Six slides of different sizes, a student, and `start(output)`, which runs the command on them."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    for number in range(6):
        size = (200 + 60 * number, 220)
        picture = draw(size, tissue=(20, 20, size[0] - 20, 200), tumour=[(60, 60, 140, 140)], seed=number)
        write_slide(tmp_path / "slides" / f"s{number}.tif", picture, levels=1)
    torch.manual_seed(0)
    network = build_student(load_config(tmp_path / "tiny.yaml").classifier)
    save_weights(tmp_path / "student.pth", network.state_dict(), {})

    def run(output: Path, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "epsam", "infer", tmp_path / "slides", "--output", output, "--root", tmp_path]
        settings = ("--config", tmp_path / "tiny.yaml", "profile=cpu", "inference.min_focus_um2=1.25")
        variables = {"STUDENT_CHECKPOINT": str(tmp_path / "student.pth"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, *settings, *words], env=os.environ | variables, stdout=subprocess.PIPE, text=True
        )

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Files but for claims, and for what a killed process had not yet renamed."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".epsam-tmp" not in path.name)
    files = (path for path in found if path.parent.name != "claims")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def wait_for_claim(output: Path, process: subprocess.Popen) -> None:
    """Wait until a job has claimed a slide."""
    while process.poll() is None:
        for path in output.glob("state/claims/slide-*"):
            try:
                if str(process.pid) in json.loads(path.read_text())["processes"]:
                    return
            except (OSError, ValueError):
                continue
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])


def test_two_jobs_one_killed_and_started_again_write_what_one_process_writes(start, tmp_path):
    alone = start(tmp_path / "alone" / "out")
    output = tmp_path / "shared" / "out"
    assert alone.wait() == 0, alone.communicate()[0]
    first, second = start(output), start(output)
    wait_for_claim(output, first)
    first.kill()
    first.wait()
    again = start(output)
    logs = [job.communicate()[0] for job in (second, again)]
    assert (second.returncode, again.returncode) == (0, 0), logs
    assert len(rows_of(output / "slides.csv")) == 6
    assert {row["status"] for row in rows_of(output / "slides.csv")} == {"ok"}
    assert contents(output) == contents(tmp_path / "alone" / "out")
    log = alone.communicate()[0]
    assert [line.split()[1] for line in log.splitlines() if line.startswith("--- ")] == [
        f"s{n}" for n in range(5, -1, -1)
    ]


def test_failed_slides_are_recorded_and_tried_again(start, tmp_path):
    output, slide = tmp_path / "out", tmp_path / "slides" / "s0.tif"
    whole = slide.read_bytes()
    for number in range(1, 6):
        (tmp_path / "slides" / f"s{number}.tif").unlink()
    write_slide(tmp_path / "slides" / "other.tif", draw((128, 128), tissue=(20, 20, 100, 100)), levels=1)
    spoil_tag(slide)
    job = start(output)
    assert job.wait() == 1
    assert "1 of 2 slides failed (s0)" in job.communicate()[0]
    record = json.loads((output / "state" / "slides" / "s0.json").read_text())
    assert "the process that read it died" in record["not_predicted"]["reason"]
    slide.write_bytes(whole)
    job = start(output)
    assert job.wait() == 0, job.communicate()[0]
    assert {row["slide"]: row["status"] for row in rows_of(output / "slides.csv")} == {"other": "ok", "s0": "ok"}


def claim_of_another_machine(path: Path) -> Path:
    holder = {"host": "elsewhere", "boot": "another", "namespace": "", "processes": {"7": "1"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(holder))
    return path


def test_a_claim_of_another_machine_counts_until_its_heartbeat_stays_away(tmp_path, monkeypatch):
    path = claim_of_another_machine(tmp_path / "a.0")
    monkeypatch.setattr(claims_module, "BEAT_S", 0.01)
    with Claims(tmp_path) as claims:
        assert not claims.take("a"), "it may live"
        assert not claims.is_held("a"), "but was not seen to"
        os.utime(path)
        assert claims.is_held("a")
        monkeypatch.setattr(claims_module, "STALE_S", 0.05)
        os.utime(path, (1, 1))
        assert not claims.take("a"), "it moved"
        time.sleep(0.1)
        assert claims.take("a")
        assert [path.name for path in tmp_path.iterdir()] == ["a.1"]
    assert not list(tmp_path.iterdir())


def test_a_claim_is_given_to_one_of_many(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from epsam.runs.claims import Claims\n"
        "with Claims(Path(sys.argv[1])) as claims:\n"
        " print(sum(claims.take(str(n)) for n in range(200))); sys.stdout.flush(); sys.stdin.read()"
    )
    (tmp_path / "5.0").write_text("{")  # one that is being written
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], **pipes) for _ in range(2)]
    counts = [int(job.stdout.readline()) for job in jobs]
    for job in jobs:
        job.communicate()
    assert sum(counts) == 199


def test_jobs_that_cannot_work_side_by_side_are_refused(place):  # noqa: F811
    folder = place.out / "state" / "claims"
    claim_of_another_machine(folder / "job-slides-00.0")
    for kind, changes in (("slides", {"fresh": True}), ("patches", {})):
        with pytest.raises(StateError, match=r"is in use by process 7 on elsewhere.*run again in 180 s"):
            place.run(kind, **changes)
    place.run("slides")
    claim_of_another_machine(folder / "job-alone-00.0")
    with pytest.raises(StateError, match="is in use"):
        place.run("slides")


def test_a_slide_of_another_job_is_left_to_it(place, caplog, monkeypatch):  # noqa: F811
    caplog.set_level("INFO")
    path = claim_of_another_machine(place.out / "state" / "claims" / "slide-one.0")
    monkeypatch.setattr("epsam.inference.predict_slides.time.sleep", lambda _: os.utime(path))
    place.run("slides")
    assert "one: other jobs work on it" in caplog.text
    assert [row["slide"] for row in rows_of(place.out / "slides.csv")] == ["two"]
    path.unlink()
    place.run("slides")
    assert [row["slide"] for row in rows_of(place.out / "slides.csv")] == ["one", "two"]


def test_what_a_killed_job_left_half_written_is_deleted_and_nothing_else(start, tmp_path):
    output = tmp_path / "out"
    for number in range(1, 6):
        (tmp_path / "slides" / f"s{number}.tif").unlink()
    assert start(output).wait() == 0
    whole = (output / "s0_mask.tif").read_bytes()
    (output / "s0_mask.tif").unlink()
    (half := output / ".s0_mask.0123abcd.epsam-tmp.tif").write_bytes(b"half")
    (other := output / ".notes.0123abcd.epsam-tmp.tif").write_bytes(b"not of this slide")
    assert start(output).wait() == 0
    assert (output / "s0_mask.tif").read_bytes() == whole
    assert (half.exists(), other.exists()) == (False, True)
