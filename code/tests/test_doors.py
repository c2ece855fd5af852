"""The doors and the command line as a user meets them."""

import json

import pytest

from epsam.cli import cli
from epsam.pipeline import STAGES

PYTHON = ".venv/bin/python"


def test_help_everywhere(run_in):
    for door in ("./train.sh", "./infer.sh"):
        done = run_in(door, "--help")
        assert done.returncode == 0
        assert door in done.stdout
    for name, command in cli.commands.items():
        assert command.help, name
    assert [name for name in cli.commands if name in {s.name for s in STAGES}] == [s.name for s in STAGES]


def test_train_runs_the_stages_in_the_order_of_the_method(top):
    lines = (top / "train.sh").read_text().splitlines()
    called = [line.split()[1] for line in lines if line.startswith("stage ")]
    assert called == ["doctor", *(s.name for s in STAGES)]


@pytest.mark.parametrize("argument", ["--frsh", "demo demo", "--from"])
def test_a_wrong_argument_is_refused(run_in, argument):
    done = run_in("./train.sh", *argument.split())
    assert done.returncode != 0
    assert done.stderr.strip()


def test_no_camelyon16_says_where_it_must_lie_and_how_to_get_it(run_in, top):
    done = run_in("./train.sh", "camelyon16")
    assert done.returncode == 1
    assert "dataset/camelyon16/images does not exist" in done.stdout
    assert "aws s3 cp --no-sign-request --recursive s3://camelyon-dataset/CAMELYON16/images/" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (top / "runs").exists()
    assert not (top / "dataset").exists()


def test_dataset_type_can_come_from_the_environment(run_in):
    done = run_in("./train.sh", DATASET_TYPE="camelyon17")
    assert "dataset/camelyon17/images does not exist" in done.stdout


def test_a_typo_in_the_settings_is_one_line(run_in, top):
    (top / "mine.yaml").write_text("clasifier: {depth: 18}\n")
    done = run_in("./train.sh", "mine.yaml")
    assert done.returncode == 1
    assert done.stdout.strip() == "error: mine.yaml: unknown setting `clasifier`; did you mean `classifier`?"
    assert done.stderr == ""


def test_infer_without_checkpoint_says_what_makes_it(run_in, top):
    done = run_in("./infer.sh")
    assert done.returncode == 1
    assert "checkpoints/demo_resnet_adl.pth: no such checkpoint; ./train.sh makes it" in done.stdout
    assert not (top / "runs").exists()


def test_a_stage_out_of_order_names_the_one_before(run_in):
    done = run_in(PYTHON, "-m", "epsam", "retrain", "--config", "demo")
    assert done.returncode == 1
    assert "retrain needs preprocess" in done.stdout


def test_doctor_as_json(run_in):
    done = run_in(PYTHON, "-m", "epsam", "doctor", "--json", "--config", "demo")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["torch"]["status"] == "ok"
    assert checks["slides"]["status"] == "error"
    assert "images" in checks["slides"]["mend"]
