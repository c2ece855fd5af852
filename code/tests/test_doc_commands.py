"""What the pages for users tell them to type: commands, settings and Python, run or checked word by word."""

import re
import shlex
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path

import click
import numpy as np
import pytest

from epsam.cli import cli
from epsam.config.describe import describe
from epsam.config.loading import find_config, load_config
from epsam.config.paths import settings_for_weights
from epsam.inference.variables import NAMES
from epsam.patches.patch import list_patches
from epsam.pipeline import PREPROCESS, STAGES
from epsam.runs.runner import run_stage
from epsam.runtime import dask_tasks
from epsam.runtime.checkpoints import save_weights
from epsam.student.network import build_student
from epsam.workspace import SPLITS, Workspace
from tests.slide_factory import draw, write_slide
from tests.test_routes import TINY, data  # noqa: F401  a fixture
from tests.tiny import TOP

README = (TOP / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(TOP).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *(TOP / name for name in ("README.md", "dataset/README.md", "checkpoints/README.md", "code/README.md")),
        *sorted((TOP / "code" / "docs").glob("*.md")),
    )
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BASH = [(page, block) for page, text in PAGES.items() for kind, block in BLOCK.findall(text) if kind == "bash"]
YAML = [(page, block) for page, text in PAGES.items() for kind, block in BLOCK.findall(text) if kind == "yaml"]
VARIABLES = {*NAMES, dask_tasks.VARIABLE, "VENV", "PYTHON", "CONSTRAINTS", "EXTRA", "WORKERS", "DATASET_TYPE"}


def _lines() -> list[tuple[str, str]]:
    """Every line that starts one of our commands: in blocks, continued lines joined, and in the text."""
    found = []
    for page, text in PAGES.items():
        blocks = [line for kind, block in BLOCK.findall(text) if kind == "bash" for line in _joined(block)]
        words = re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
        found += [(page, line) for line in (*blocks, *words) if OURS.search(line)]
    return found


def _joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


OURS = re.compile(r"^(\w+=\S+ )*(\./train\.sh|\./infer\.sh|(\S*/)?epsam|\S*python -m epsam)( |$)")


@pytest.mark.parametrize(("page", "line"), _lines())
def test_every_command_has_words_that_the_program_takes(page, line):
    words = list(takewhile(lambda word: word not in ("&", "&&", "|", ">", ";"), shlex.split(line, comments=True)))
    while re.match(r"\w+=", words[0]):
        assert words.pop(0).partition("=")[0] in VARIABLES, f"{page}: {line}"
    program = words.pop(0)
    if words[:2] == ["-m", "epsam"]:
        words = words[2:]
    if program == "./train.sh" and words[:1] == ["--gpus"]:  # the script's own, which starts the processes
        assert words[1].isdigit()
        words = words[2:]
    name = {"./train.sh": "train", "./infer.sh": "infer"}.get(program) or (words.pop(0) if words else "")
    if not words or words == ["--help"]:  # named, not called
        assert name == "" or name in cli.commands
        return
    context = cli.commands[name].make_context(name, words, resilient_parsing=False)
    config = context.params.get("config_name")
    overrides = (*context.params.get("overrides", ()), *(w for w in context.params.get("words", ()) if "=" in w))
    base = find_config(config or "demo")
    if name in ("train", "infer"):
        assert base.is_file() or base.suffix == ".yaml", f"{page}: {line}"
        load_config(base if base.is_file() else find_config("own"), overrides)
    if first := context.params.get("first"):
        assert first in ("STAGE", *(stage.name for stage in STAGES)), f"{page}: {line}"


def test_misspelt_words_would_be_found():
    assert len(_lines()) > 40
    for words in (["--modle", "x"], ["--mpp", "none"]):
        with pytest.raises(click.UsageError):
            cli.commands["infer"].make_context("infer", words)


@pytest.mark.parametrize(("page", "block"), BASH)
def test_every_block_of_shell_is_shell(page, block):
    checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, f"{page}: {checked.stderr}"


@pytest.mark.parametrize(("page", "block"), YAML)
def test_every_file_of_settings_is_read(page, block, tmp_path):
    (tmp_path / "mine.yaml").write_text(block)
    assert load_config(tmp_path / "mine.yaml").name


def test_every_setting_that_is_named_is_there():
    groups = {group.name: group for group in describe() if group.name}
    known = {setting.key for group in describe() for setting in group.settings} | set(groups)
    sections = "|".join({name.partition(".")[0] for name in groups})
    named = {
        (page, key)
        for page, text in PAGES.items()
        for key in re.findall(rf"`((?:{sections})\.[a-z][a-z_.0-9]*[a-z0-9])(?:[`=:])", text)
        if not key.endswith((".py", ".csv", ".md", ".html"))
    }
    assert len(named) > 40
    assert not {(page, key) for page, key in named if key not in known and key.rpartition(".")[0] not in known}


def test_the_readme_is_short_and_comes_to_slides_on_its_first_screen():
    lines = README.splitlines()
    assert len(lines) < 130
    first = "\n".join(lines[:40])
    assert "./infer.sh" in first
    assert "(#your-own-slides)" in first
    assert {kind for kind, _ in BLOCK.findall(README)} == {"bash", "yaml", "python", "bibtex"}
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", README, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= anchors


def test_the_readmes_settings_cut_patches_of_slides(data, tmp_path):  # noqa: F811
    (block,) = (block for kind, block in BLOCK.findall(README) if kind == "yaml")
    (tmp_path / "mine.yaml").write_text(block)
    shutil.copytree(data / "slides", tmp_path / "dataset" / "mine" / "images")
    shutil.copytree(data / "xml", tmp_path / "dataset" / "mine" / "annotations")
    small = (*TINY[:7], "slides.unannotated=normal")
    workspace = Workspace(tmp_path, "mine")
    run_stage(STAGES, PREPROCESS, load_config(tmp_path / "mine.yaml", small), workspace)
    assert all(list_patches(workspace.split(split)) for split in SPLITS)


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    (code,) = (block for kind, block in BLOCK.findall(README) if kind == "python")
    config = load_config(find_config("demo"), ("profile=cpu",))
    weights = build_student(config.classifier).state_dict()
    save_weights(tmp_path / "checkpoints" / "demo_student.pth", weights, settings_for_weights(config, None))
    write_slide(tmp_path / "my_slide.svs", draw(size=(384, 320), tissue=(16, 16, 368, 304)))
    monkeypatch.chdir(tmp_path)
    names = {"image": np.full((128, 160, 3), 200, np.uint8)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["probability"].shape == (128, 160)
    assert names["figures"]["slide"] == "my_slide"
    assert (Path("out") / "my_slide.geojson").is_file()
