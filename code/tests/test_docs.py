"""What the contributors' page and the hooks name is there."""

import ast
import re
from pathlib import Path

import yaml

CODE = Path(__file__).parents[1]
PAGE = (CODE / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+?) \| (.+?) \| `(test_\w+\.py)::(test_\w+)` \|$", re.MULTILINE)


def _tests_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_kind_of_bad_input_has_a_test_that_is_there():
    table = PAGE[PAGE.index("## Bad input") :]
    rows = ROW.findall(table)
    lines = [
        line for line in table.splitlines() if line.startswith("| ") and not line.startswith(("| **", "| bad input"))
    ]
    assert len(rows) == len(lines), "every row ends in `test_file.py::test_name`"
    assert len(rows) >= 45
    assert len({bad for bad, *_ in rows}) == len(rows)
    named = {file: {test for _, _, other, test in rows if other == file} for _, _, file, _ in rows}
    missing = {file: tests - _tests_of(CODE / "tests" / file) for file, tests in named.items()}
    assert not {file: tests for file, tests in missing.items() if tests}


def test_every_path_on_the_page_is_there():
    house = PAGE.split("```")[1]
    named = set(re.findall(r"[\w/]+\.(?:py|sh)\b|\b[a-z]+/(?=\s)", house))
    named |= set(re.findall(r"`(?:python )?([\w/]+\.(?:py|sh|md))[`:, ]", PAGE))
    assert len(named) > 30
    places = (CODE.parent, CODE, CODE / "epsam", CODE / "tests", CODE / "benchmarks")
    assert not [name for name in sorted(named) if not any((place / name).exists() for place in places)]


def test_names_after_a_colon_are_in_their_files():
    for file, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE):
        found = next(folder / file for folder in (CODE, CODE / "epsam") if (folder / file).is_file())
        assert name.split(".")[0] in found.read_text(encoding="utf-8"), f"{file}:{name}"


def test_hooks_run_what_ci_runs_and_need_no_other_host():
    settings = yaml.safe_load((CODE.parent / ".pre-commit-config.yaml").read_text())
    (local,) = settings["repos"]
    assert local["repo"] == "local"
    entries = {hook["id"]: hook["entry"] for hook in local["hooks"] if hook["language"] == "system"}
    assert entries["test"] in (CODE.parent / ".ci" / "run").read_text()
    assert entries["ruff"].startswith(".venv/bin/ruff check")
    assert ".venv/bin/ruff check code" in (CODE.parent / "test.sh").read_text()
