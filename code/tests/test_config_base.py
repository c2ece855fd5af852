"""`base: NAME` in a user's settings file."""

import pytest

from epsam.config.loading import find_config, load_config
from epsam.errors import ConfigError


def written(tmp_path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_file_says_what_differs_from_a_shipped_one(tmp_path):
    path = written(
        tmp_path,
        "mine.yaml",
        "base: own-small\npatches: {size_px: 256, train: {negatives: 7}}\n"
        "classifier.epochs: 2\ncam: {threshold: 0.3}\n",
    )
    mine, small = load_config(path, ("retrain.rounds=1",)), load_config(find_config("own-small"))
    assert (mine.name, mine.patches.size_px, mine.cam.threshold, mine.retrain.rounds) == ("mine", 256, 0.3, 1)
    assert mine.patches.train == small.patches.train.model_copy(update={"negatives": 7})
    assert mine.classifier == small.classifier.model_copy(update={"epochs": 2})


def test_a_base_may_be_a_file_beside_with_a_base_of_its_own(tmp_path):
    written(tmp_path, "ours.yaml", "name: ours\nbase: own\nsam: {views: 2}\n")
    config = load_config(written(tmp_path, "mine.yaml", "base: ours.yaml\nfinetune: {epochs: 3}\n"))
    assert (config.name, config.sam.views, config.finetune.epochs, config.classifier.init) == ("mine", 2, 3, "imagenet")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("own-smal", "no base `own-smal`; did you mean `own-small`"),
        ("zzz", "no base `zzz`; shipped are camelyon16, .*own-small"),
        ("mine.yaml", "leads back to this file"),
        ("other.yaml", "leads back to this file"),
        ("[own]", "`base` names a shipped config"),
    ],
)
def test_a_wrong_base_is_named_in_one_line(tmp_path, base, message):
    written(tmp_path, "other.yaml", "base: mine.yaml\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(written(tmp_path, "mine.yaml", f"base: {base}\n"))
    assert "\n" not in str(caught.value)


def test_a_typo_beside_a_base_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown setting `clasifier`"):
        load_config(written(tmp_path, "mine.yaml", "base: own\nclasifier: {depth: 18}\n"))
