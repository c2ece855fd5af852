"""Settings that travel with weights: nothing in them becomes a path or an import."""

import json
from pathlib import Path

import pytest

from epsam.config.loading import find_config, load_config
from epsam.config.paths import counted_from, settings_for_weights
from epsam.config.schema import Config
from epsam.doctor.run import examine
from epsam.errors import ConfigError
from epsam.inference.checkpoints import settings_of
from epsam.workspace import Workspace

ASAP = "multiresolutionimageinterface.py"


def _paths_of(schema, definitions, prefix=""):
    """Dotted keys whose JSON schema allows a path anywhere, found without the code under test."""
    for name, part in schema.get("properties", {}).items():
        for reference in [part, *part.get("allOf", []), *part.get("anyOf", [])]:
            if "$ref" in reference:
                section = definitions[reference["$ref"].rpartition("/")[2]]
                yield from _paths_of(section, definitions, f"{prefix}{name}.")
        if '"path"' in json.dumps(part).replace("directory-path", "path").replace("file-path", "path"):
            yield prefix + name


SCHEMA = Config.model_json_schema()
PATHS = list(_paths_of(SCHEMA, SCHEMA["$defs"]))


def _value(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.fixture
def sidecar(tmp_path):
    """Write settings beside a classifier and a decoder; gives both."""

    def write(settings):
        files = [tmp_path / "resnet.pth", tmp_path / "decoder.pth"]
        for file in files:
            file.write_bytes(b"weights")
            (tmp_path / f"{file.name}.json").write_text(json.dumps({"settings": {"name": "theirs"} | settings}))
        return files

    return write


def test_the_schema_has_the_paths_that_are_known():
    assert set(PATHS) >= {"slides.asap_path", "sam.checkpoint", "classifier.init"}


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("nested", [False, True])
def test_no_path_is_taken_from_settings_beside_weights(sidecar, tmp_path, caplog, key, nested):
    section, _, name = key.partition(".")
    settings = {section: {name: "/theirs"}} if nested and name else {key: "/theirs"}
    files = sidecar(settings)
    assert _value(settings_of(files, None, ()), key) == _value(Config(name="x"), key)
    assert f"give {key} yourself" in caplog.text
    assert str(_value(settings_of(files, None, (f"{key}=/mine",)), key)) == "/mine"
    (tmp_path / "mine.yaml").write_text(f"{section}: {{{name}: /mine}}\n" if name else f"{section}: /mine\n")
    assert str(_value(settings_of(files, str(tmp_path / "mine.yaml"), ()), key)) == "/mine"


def test_words_in_place_of_a_path_are_kept(sidecar, caplog):
    assert settings_of(sidecar({"classifier.init": "imagenet"}), None, ()).classifier.init == "imagenet"
    assert not caplog.text


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/b", "..", "a\nb", "a\n"])
def test_a_name_that_is_a_path_is_refused(sidecar, name):
    with pytest.raises(ConfigError, match=r"decoder\.pth\.json: `name`"):
        settings_of(sidecar({"name": name}), None, ())


@pytest.mark.parametrize("key", PATHS)
def test_no_path_is_saved_beside_weights(key):
    config = load_config(find_config("demo"), (f"{key}=/private",))
    saved = settings_for_weights(config, None)
    assert "private" not in json.dumps(saved)
    assert saved["classifier.depth"] == 18


def test_a_decoder_from_elsewhere_runs_none_of_its_authors_code(run_in, top):
    theirs = top / "theirs"
    theirs.mkdir()
    (theirs / ASAP).write_text(f"open({str(top / 'was_run')!r}, 'w')\n")
    for name in ("demo_resnet_adl.pth", "demo_sam_decoder.pth"):
        (top / "checkpoints" / name).write_bytes(b"weights from elsewhere")
        (top / "checkpoints" / f"{name}.json").write_text(
            json.dumps({"settings": {"name": "demo", "slides.asap_path": str(theirs)}})
        )
    done = run_in("./infer.sh")
    assert done.returncode == 1
    assert "slides.asap_path" in done.stdout
    assert not (top / "was_run").exists()


def test_paths_in_settings_count_from_the_top_level_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "study" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("slides: {asap_path: ~/ASAP/bin}\nsam: {checkpoint: checkpoints/sam.pth}")
    config = load_config(path, ("classifier.init=~/resnet.pth",))
    assert config.slides.asap_path == tmp_path / "home" / "ASAP/bin"
    assert config.classifier.init == tmp_path / "home" / "resnet.pth"
    used = counted_from(config, tmp_path / "top")
    assert used.sam.checkpoint == tmp_path / "top" / "checkpoints/sam.pth"
    assert used.classifier.init == config.classifier.init
    assert examine(config, Workspace(tmp_path / "top", "mine"))[-3].message.startswith(
        f"sam.checkpoint {tmp_path}/top/checkpoints/sam.pth is missing"
    )
    for wrong in ("slides.asap_path=ASAP/bin", "sam.checkpoint=~nobody_is_called_so/sam.pth"):
        with pytest.raises(ConfigError, match=r"asap_path.*full path|checkpoint.*unknown home folder"):
            load_config(path, (wrong,))


def test_paths_in_overrides_count_from_where_the_user_stands(tmp_path, monkeypatch):
    there = tmp_path / "there"
    (tmp_path / "mine.yaml").write_text("classifier: {init: resnet.pth}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EPSAM_CALLED_FROM", str(there))
    config = load_config(tmp_path / "mine.yaml", ("sam.checkpoint=sam.pth", "slides.asap_path=../bin", "profile=cpu"))
    assert (config.sam.checkpoint, config.profile) == (there / "sam.pth", "cpu")
    assert config.slides.asap_path == there / "../bin"
    assert config.classifier.init == Path("resnet.pth")
    assert load_config(tmp_path / "mine.yaml", ("classifier.init=imagenet",)).classifier.init == "imagenet"
    assert find_config("mine.yaml") == there / "mine.yaml"
    (there / "above.yaml").parent.mkdir()
    (there / "above.yaml").write_text("base: ~/mine.yaml\n")
    assert load_config(there / "above.yaml").classifier.init == Path("resnet.pth")
