"""A top level of its own for each test that runs the doors or the command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


@pytest.fixture
def top(tmp_path):
    """A folder like the project's top level: the doors, code and the shipped weights, nothing made yet."""
    for door in ("train.sh", "infer.sh", "requirements.txt"):
        shutil.copy(TOP / door, tmp_path / door)
    (tmp_path / "code").symlink_to(TOP / "code")
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(TOP / "checkpoints" / "sam_demo.pth", tmp_path / "checkpoints")
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    # The interpreter of the tests stands in for the one that the doors would install.
    (bin_ / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_ / "python").chmod(0o755)
    wanted = subprocess.run("cat requirements.txt code/pyproject.toml | cksum", shell=True, cwd=tmp_path,
                            capture_output=True, check=True).stdout
    (tmp_path / ".venv" / "installed").write_bytes(wanted)
    return tmp_path


@pytest.fixture
def run_in(top):
    """Run a command in `top`; gives the finished process with text output."""

    def run(*command: str, **variables: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if k not in ("DATASET_TYPE", "EPSAM_OWNER_PID")}
        return subprocess.run(command, cwd=top, env=clean | variables, capture_output=True, text=True, timeout=600,
                              check=False)

    return run
