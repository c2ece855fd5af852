"""`epsam settings` and its page: every setting with its default, values, unit and meaning."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from epsam.cli import cli
from epsam.config.describe import as_markdown, describe
from epsam.config.schema import Config
from epsam.errors import ConfigError
from epsam.runtime.sidecar import flatten

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def _shown(*arguments: str) -> str:
    return CliRunner().invoke(cli, ["settings", *arguments], catch_exceptions=False).output


def test_every_setting_is_listed_with_a_meaning():
    settings = [setting for group in describe() for setting in group.settings]
    groups = ("slides.groups", "patches.class_folders")
    there = {
        key if not key.startswith(groups) else key.rsplit(".", 1)[0] for key in flatten(Config(name="x").model_dump())
    }
    assert {setting.key for setting in settings} == there
    assert not [setting.key for setting in settings if not setting.meaning.endswith(".")]
    assert all(group.meaning for group in describe())


def test_the_page_is_what_the_command_prints():
    hint = "run `epsam settings --markdown` and put it below the introduction of docs/settings.md"
    assert PAGE.read_text(encoding="utf-8").endswith(f"\n{as_markdown(describe())}\n"), hint
    assert _shown("--markdown") == f"{as_markdown(describe())}\n"


def test_a_section_or_a_setting_alone():
    whole = _shown("patches")
    assert "patches.size_px = 512" in whole
    assert "1 or more; px" in whole
    assert "patches.tissue.close_px = 7" in whole
    assert "classifier." not in whole.replace("`classifier.positive_share`", "")
    alone = _shown("cam.threshold")
    assert alone.count(" = ") == 1
    assert "0 to 1, auto, null" in alone
    assert max(len(line) for line in _shown().splitlines()) <= 120


@pytest.mark.parametrize(
    ("name", "hint"), [("retrian", "`retrain`"), ("cam.treshold", "`cam.threshold`"), ("q", "cam")]
)
def test_an_unknown_section_names_the_closest(name, hint):
    with pytest.raises(ConfigError, match=f"{name}.*{hint}"):
        describe(name)


def test_values_are_those_that_the_schema_allows():
    values = {setting.key: setting.values for group in describe() for setting in group.settings}
    assert values["sam.views"] == "1 to 8"
    assert values["cam.percentile"] == "0 to below 100, null"
    assert values["classifier.lr"] == "above 0"
    assert values["classifier.init"] == "random, imagenet, path"
    assert values["patches.positive_share"] == "two of: 0 to 1"
