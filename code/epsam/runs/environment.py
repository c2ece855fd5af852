"""What a run ran on: versions, device, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from epsam import __version__
from epsam.runtime.records import Record, read_record, write_record

if TYPE_CHECKING:
    from epsam.runtime.device import Hardware  # which imports torch: the doctor does without

PACKAGES = (
    "torch",
    "torchvision",
    "segment-anything",
    "numpy",
    "opencv-python-headless",
    "scikit-image",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "pydantic",
)


MAX_REASON = 120
"""Characters of git's complaint that are kept."""


class Environment(Record):
    """runs/<name>/environment.json."""

    epsam: str
    commit: str
    """Of the program, see `commit`."""
    python: str
    system: str
    device: str
    profile: str
    precision: str
    packages: dict[str, str]


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def commit() -> str:
    """Git commit of the program, with a + when files were changed; empty where it is in no repository.

    `unknown (...)` where git refuses to look, as in a container whose user does not own the folder.
    """
    try:
        if not _git("ls-files", Path(__file__).name):  # installed in a folder inside somebody's repository
            return ""
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split()).removeprefix("fatal: ")
        return "" if reason.startswith("not a git repository") else f"unknown ({reason[:MAX_REASON]})"
    except subprocess.TimeoutExpired:
        return "unknown (git took more than 10 s)"
    except OSError:  # no git
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=10,
        check=True,
    ).stdout.strip()


def write_environment(path: Path, hardware: "Hardware") -> None:
    """Write versions, machine and device to a JSON file."""
    import torch

    gpu = torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else ""
    write_record(
        path,
        Environment(
            epsam=__version__,
            commit=commit(),
            python=platform.python_version(),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            device=gpu or f"CPU, {torch.get_num_threads()} threads",
            profile=hardware.profile,
            precision=str(hardware.precision).removeprefix("torch."),
            packages=package_versions(),
        ),
    )


def read_environment(path: Path) -> Environment:
    """Read what `write_environment` wrote; raises DataError when the file is damaged."""
    return read_record(path, Environment, "delete it, and the report does without")
