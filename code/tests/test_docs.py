"""The contributors' pages and the hooks name files, tests and functions that exist."""

import ast
import re
import subprocess
from pathlib import Path

import yaml

from tests.test_layers import layer_of

CODE = Path(__file__).parents[1]
PAGE = (CODE / "README.md").read_text(encoding="utf-8")
LAYOUT = PAGE.split("```")[1]
BAD_INPUT = (CODE / "docs" / "BAD_INPUT.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+?) \| (.+?) \| `(test_\w+\.py)::(test_\w+)` \|$", re.MULTILINE)


def _tests_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_kind_of_bad_input_has_a_test_that_is_there():
    rows = ROW.findall(BAD_INPUT)
    lines = [
        line
        for line in BAD_INPUT.splitlines()
        if line.startswith("| ") and not line.startswith(("| **", "| bad input"))
    ]
    assert len(rows) == len(lines), "every row ends in `test_file.py::test_name`"
    assert len(rows) >= 45
    assert len({bad for bad, *_ in rows}) == len(rows)
    named = {file: {test for _, _, other, test in rows if other == file} for _, _, file, _ in rows}
    missing = {file: tests - _tests_of(CODE / "tests" / file) for file, tests in named.items()}
    assert not {file: tests for file, tests in missing.items() if tests}


def _listed(indent: int, after: str) -> list[str]:
    """Names that the picture of the layout lists, so many spaces deep, below the line that begins with `after`."""
    lines = LAYOUT[re.search(rf"^ *{re.escape(after)}", LAYOUT, re.MULTILINE).end() :].splitlines()[1:]
    names = []
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if depth < indent:
            break
        if depth == indent:
            names.append(line.split()[0])
    return names


def test_the_layout_lists_the_package_in_the_order_of_its_imports():
    listed = _listed(4, "epsam/")
    there = {
        path.name + "/" * path.is_dir()
        for path in (CODE / "epsam").iterdir()
        if not path.name.startswith(("__", ".")) and path.suffix in ("", ".py")
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == there
    numbers = [layer_of(name.removesuffix(".py").removesuffix("/"))[0] for name in listed]
    assert numbers == sorted(numbers)


def test_the_layout_lists_what_lies_beside_the_package():
    listed = {name.split("/")[0] for name in _listed(2, "code/")}
    there = {path.name for path in CODE.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert listed == {name for name in there if not name.endswith(".egg-info")}
    assert all((CODE.parent / script).is_file() for script in re.findall(r"\w+\.sh", LAYOUT))


def test_every_path_and_link_on_the_pages_is_there():
    named = set(re.findall(r"`(?:python )?([\w/]+\.(?:py|sh|md))[`:, ]", PAGE))
    assert len(named) > 20
    places = (CODE.parent, CODE, CODE / "epsam", CODE / "tests", CODE / "benchmarks")
    assert not [name for name in sorted(named) if not any((place / name).exists() for place in places)]
    for page in (CODE.parent / "README.md", CODE / "README.md", CODE.parent / "dataset" / "README.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert not [link for link in links if not (page.parent / link).exists()], page


def test_names_after_a_colon_are_in_their_files():
    for file, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE):
        found = next(folder / file for folder in (CODE, CODE / "epsam") if (folder / file).is_file())
        assert name.split(".")[0] in found.read_text(encoding="utf-8"), f"{file}:{name}"


def test_scripts_for_a_cluster_are_valid_and_give_options_that_there_are():
    page = (CODE / "docs" / "cluster.md").read_text(encoding="utf-8")
    scripts = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    assert scripts
    usage = "".join((CODE.parent / name).read_text(encoding="utf-8") for name in ("train.sh", "infer.sh"))
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for words in re.findall(r"^#SBATCH (.+)", script, re.MULTILINE):
            assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", word) for word in words.split())
        for words in re.findall(r"^\./(?:train|infer)\.sh (.+)", script, re.MULTILINE):
            assert not [word for word in re.findall(r"--[a-z]+", words) if word not in usage]


def test_hooks_run_what_ci_runs_and_need_no_other_host():
    settings = yaml.safe_load((CODE.parent / ".pre-commit-config.yaml").read_text())
    (local,) = settings["repos"]
    assert local["repo"] == "local"
    entries = {hook["id"]: hook["entry"] for hook in local["hooks"] if hook["language"] == "system"}
    assert entries["test"] in (CODE.parent / ".ci" / "run").read_text()
    assert entries["ruff"].startswith(".venv/bin/ruff check")
    script = (CODE.parent / "test.sh").read_text()
    assert ".venv/bin/ruff check code" in script
    assert ".venv/bin/ruff format --check" in entries["ruff-format"]
    assert ".venv/bin/ruff format --check" in script
    assert f"\n{entries['mypy']}\n" in script
