"""Settings: what is shipped is right, and what a user gets wrong is named."""

import re
from pathlib import Path

import pytest
import yaml

from epsam.config.loading import find_config, load_config
from epsam.config.schema import Config
from epsam.errors import ConfigError
from epsam.shipped import CONFIGS

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["demo", "own", "own-small", "camelyon16", "camelyon17"])
def test_shipped_configs_load_and_are_named_after_their_file(name):
    assert load_config(find_config(name)).name == name


def test_published_figures_of_camelyon16():
    c = load_config(find_config("camelyon16"))
    assert (c.patches.train.per_bin, c.patches.val.per_bin, c.patches.test.per_bin) == (430, 50, 143)
    assert (c.cam.mask_px, c.cam.percentile, c.cam.opening_px) == (512, 10, 21)


def test_published_figures_of_camelyon17():
    c = load_config(find_config("camelyon17"))
    assert (c.patches.train.per_bin, c.patches.val.top_up, c.patches.test.at_random) == (500, 1000, 2000)
    assert (c.cam.mask_px, c.cam.percentile, c.cam.opening_px) == (32, 30, 5)
    assert (c.finetune.lr, c.finetune.batch, c.finetune.epochs, c.retrain.rounds, c.retrain.ids) == (
        5e-6,
        4,
        20,
        3,
        0.9,
    )
    assert (c.classifier.lr, c.classifier.batch, c.classifier.epochs, c.classifier.seed) == (1e-5, 16, 50, 22)
    assert (c.patches.seed, c.finetune.seed, c.prompts.points) == (42, 21, 50)


@pytest.mark.parametrize("word", ["on", "off"])
def test_words_that_yaml_takes_for_true_and_false_are_words(word):
    assert load_config(find_config("demo"), (f"sam.embeddings={word}",)).sam.embeddings == word


def test_unknown_key_names_the_closest_right_one():
    with pytest.raises(
        ConfigError, match=r"unknown setting `finetune.learning_rat`.*`retrain.round`; did you mean `rounds`"
    ):
        load_config(find_config("demo"), ("finetune.learning_rat=1", "retrain.round=2"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompts.kind=dots", "prompts.kind.*points.*boxes.*both.*dots"),
        ("sam.views=9", "sam.views.*8.*9"),
        ("postprocess.views=8", "postprocess.views is 8, but sam.views keeps 4"),
        ("patches.positive_share=[0.9, 0.2]", "patches.positive_share must rise"),
        ("cam.percentile=30", "exactly one of percentile and threshold"),
        ("cam.threshold=2", "`cam.threshold`: .*less than or equal to 1.*`cam.threshold`: .*'auto'"),
        ("slides.split=published", "split: random"),
        ("slides.groups={tumour: [Tumor], hole: [Tumor]}", "groups names Tumor twice"),
        ("retrain=3", "retrain"),
        ("retrain.rounds", "section.key=value"),
        ("name.x=1", "`name` is a value, not a section"),
        ("name=../up", "name"),
        ("name=inference", "taken"),
        ("retrain.rounds=[", "not YAML"),
    ],
)
def test_wrong_values_are_named_in_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(find_config("demo"), (override,))
    assert "\n" not in str(caught.value)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(ConfigError, match="no such settings file.*camelyon16"):
        load_config(tmp_path / "none.yaml")
    for content in (b"a: [", b"\xff\xfe\x00", b"- 1\n", b"", b"a: &a [*a]\n"):
        bad = tmp_path / "bad.yaml"
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            load_config(bad)


def test_an_own_file_needs_no_name_and_few_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("patches: {size_px: 256}\n")
    config = load_config(path, ("retrain.rounds=1",))
    assert (config.name, config.patches.size_px, config.retrain.rounds) == ("mine", 256, 1)


def test_requirements_and_package_agree():
    listed = {line.split("#")[0].strip() for line in (TOP / "requirements.txt").read_text().splitlines()}
    package = (TOP / "code" / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", package, re.M | re.S).group(1)
    assert set(re.findall(r'"(.+?)"', block)) == listed - {""}


def test_every_key_of_the_shipped_files_is_read():
    for path in CONFIGS.glob("*.yaml"):
        written = yaml.safe_load(path.read_text())
        loaded = load_config(path).model_dump(mode="json")
        for section, values in written.items():
            for key, value in values.items() if isinstance(values, dict) else ():
                if not isinstance(value, dict):
                    assert loaded[section][key] == value, f"{path.name}: {section}.{key}"


def test_config_survives_the_file_beside_a_checkpoint():
    from epsam.config.loading import config_from
    from epsam.runtime.sidecar import flatten

    config = load_config(find_config("camelyon17"))
    assert config_from(flatten(config.model_dump(mode="json")), "x") == config
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("groups", "hint"),
    [
        ("{tumour: [1]}", "put quotes around it"),
        ("{tumour: [Yes]}", "put quotes around it"),
        ("{tumour: Tumor}", "a list is written [a, b]"),
    ],
)
def test_a_value_that_yaml_reads_as_another_type_says_how_to_write_it(tmp_path, groups, hint):
    path = tmp_path / "mine.yaml"
    path.write_text(f"slides: {{groups: {groups}}}")
    with pytest.raises(ConfigError, match=re.escape(hint)):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("classifier:\n  lr: 0.1\nclassifier:\n  epochs: 3\n", "`classifier` comes twice"),
        ("slides:\n  groups: {tumour: [a], tumour: [b]}\n", "`tumour` comes twice"),
        ("classifier.lr: 0.1\nclassifier:\n  lr: 0.2\n", "`classifier.lr` comes twice"),
        ("name: 2024-01-02\n", "(given: '2024-01-02'); put quotes around it"),
        ("name: Müller\n".encode("latin-1"), "its letters are not UTF-8"),
    ],
)
def test_what_yaml_would_take_otherwise_in_silence_is_refused(tmp_path, text, reason):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert reason in str(caught.value)


def test_a_section_in_two_parts_and_other_encodings_are_read(tmp_path):
    path = tmp_path / "mine.yaml"
    for text in ("classifier.lr: 0.1\nclassifier:\n  epochs: 3\n", "classifier:\n  epochs: 3\nclassifier.lr: 0.1\n"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_bytes(text.encode(encoding))
            classifier = load_config(path).classifier
            assert (classifier.lr, classifier.epochs) == (0.1, 3)
