"""The package as `pip install ./code` installs it: built and unpacked without a network."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def install_wheel(folder: Path) -> Path:
    """Install the package under `folder`, apart from this clone; gives the prefix, which holds bin/epsam."""
    top = folder / "clone"
    shutil.copytree(TOP / "code" / "configs", top / "code" / "configs")
    shutil.copytree(TOP / "code" / "epsam", top / "code" / "epsam", symlinks=True, ignore=lambda *_: {"__pycache__"})
    for file in ("code/pyproject.toml", "code/README.md", "checkpoints/sam_demo.pth"):
        (top / file).parent.mkdir(exist_ok=True)
        shutil.copy(TOP / file, top / file)
    build = [*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, top / "code"]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if "Cannot import 'setuptools" in built.stdout + built.stderr:
        pytest.skip("no setuptools here, and without a network none can be fetched to build a wheel with")
    assert built.returncode == 0, built.stderr
    shutil.rmtree(top)
    (wheel,) = folder.glob("epsam-*.whl")
    prefix = folder / "installed"
    install = [*PIP, "install", "--no-index", "--no-deps", "--ignore-installed", "--prefix", prefix, wheel]
    subprocess.run(install, capture_output=True, check=True)
    return prefix
