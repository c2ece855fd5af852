"""What a run ran on: versions, device, commit."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from epsam import __version__
from epsam.runtime.device import Hardware
from epsam.runtime.records import Record, read_record, write_record

PACKAGES = (
    "torch",
    "torchvision",
    "segment-anything",
    "numpy",
    "opencv-python",
    "scikit-image",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "pydantic",
)


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
    """Git commit of the program, with a + when files were changed; empty outside a repository."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")


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
