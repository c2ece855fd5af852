"""A top level of its own for each test that runs the scripts or the command line."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.tiny import make_top
from tests.wheel import install_wheel


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A log that a test captured may hold names that are no text, and these cannot be sent between processes of the tests."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture
def top(tmp_path):
    """A folder like the project's top level: the scripts, code and the shipped weights, nothing made yet."""
    make_top(tmp_path)
    return tmp_path


@pytest.fixture
def run_in(top):
    """Run a command in `top`; gives the finished process with text output."""

    def run(*command: str, cwd: Path = top, **variables: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if k not in ("DATASET_TYPE", "EPSAM_OWNER_PID")}
        return subprocess.run(
            command, cwd=cwd, env=clean | variables, capture_output=True, text=True, timeout=600, check=False
        )

    return run


@pytest.fixture(scope="session")
def installed_epsam(tmp_path_factory):
    """Run the command `epsam` of an installed package in the folder `cwd`; gives the finished process with text output."""
    prefix = install_wheel(tmp_path_factory.mktemp("wheel"))
    (package,) = prefix.rglob("epsam/__init__.py")

    def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
        env = {k: v for k, v in os.environ.items() if k != "EPSAM_OWNER_PID"} | {"PYTHONPATH": str(package.parents[1])}
        command = [prefix / "bin" / "epsam", *words]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)

    return run
