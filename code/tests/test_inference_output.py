"""OUTPUT_DIR: only what ./infer.sh wrote there and recorded is ever replaced or deleted."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from epsam.config.loading import load_config
from epsam.errors import DataError, EpsamError, StateError
from epsam.inference.names import output_names
from epsam.inference.output import OUTPUTS, PAGE_FILES
from epsam.inference.output_choice import default_label
from epsam.inference.run import InferenceSettings, infer
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import read_csv, read_mask, write_png
from tests.tiny import SETTINGS

ROW = {
    "reader": "openslide",
    "vendor": "",
    "width": 8,
    "height": 8,
    "mpp_x": None,
    "mpp_y": None,
    "tumour_mm2": None,
    "tissue_mm2": None,
    "tumour_fraction": 0.0,
    "foci": 0,
    "largest_focus_mm": None,
    "tumour_px2": 0.0,
    "largest_focus_px": 0.0,
}


def _predict_slide(slide, output, work, models, trained_at):
    work.mkdir(parents=True, exist_ok=True)
    (work / "tiles.u8").write_bytes(b"")
    for suffix in OUTPUTS:
        (output / (slide.name + suffix)).write_text(f"of {slide.path.name}")
    (output / "pages").mkdir(exist_ok=True)
    for suffix in PAGE_FILES:
        (output / "pages" / (slide.name + suffix)).write_text("{}")
    return {"slide": slide.name, "path": str(slide.path)} | ROW


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Patches a and b, slides one and two, and `run(kind, fresh)`, which predicts them without any network."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    config = load_config(tmp_path / "tiny.yaml")
    models = SimpleNamespace(
        config=config,
        hardware=choose_hardware("cpu"),
        uses_classifier=True,
        usual_overlap=0.5,
        classify=lambda images, names: np.ones(len(images), np.float32),
        masks=lambda images, names: np.ones(images.shape[:3], bool),
    )
    monkeypatch.setattr("epsam.inference.run.load_models", lambda *_, **__: models)
    monkeypatch.setattr("epsam.inference.predict_slides.predict_slide", _predict_slide)
    for name in "ab":
        write_png(tmp_path / "patches" / "image" / f"{name}.png", np.zeros((128, 128, 3), np.uint8))
    (tmp_path / "slides").mkdir()
    for name in ("one", "two"):
        (tmp_path / "slides" / f"{name}.tif").write_text("a slide")
    for name in ("resnet", "decoder"):
        (tmp_path / f"{name}.pth").write_bytes(b"weights")

    def run(kind, *others, fresh=False, **changes):
        infer(
            InferenceSettings(
                tmp_path / kind,
                tmp_path / "resnet.pth",
                None,
                tmp_path / "decoder.pth",
                changes.pop("output_dir", tmp_path / "out"),
                changes.pop("config", config),
                fresh=fresh,
                others=tuple(tmp_path / name for name in others),
                **changes,
            ),
            models.hardware,
        )

    return SimpleNamespace(out=tmp_path / "out", run=run, top=tmp_path, config=config)


def _contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith((".lock", "lock"))
    }


def test_an_exchanged_slide_is_refused_and_an_exchanged_patch_predicted_again(place, caplog):
    place.run("patches")
    write_png(place.top / "patches" / "image" / "b.png", np.full((128, 128, 3), 9, np.uint8))
    place.run("patches")
    assert caplog.text.count("is predicted again") == 1
    place.run("patches")
    assert caplog.text.count("is predicted again") == 1
    slide = place.top / "slides" / "two.tif"
    place.run("slides")
    times = slide.stat()
    slide.write_text("a slidE")
    os.utime(slide, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"1 of 2 slides failed \(two\)"):
        place.run("slides")
    assert "is not the file any more that its two was made from" in (place.out / "slides.csv").read_text()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("kind", "foreign"),
    [
        ("patches", "mask/a.png"),
        ("patches", "mask/mine.png"),
        ("patches", "overlay/b.png"),
        ("patches", "predictions.csv"),
        ("slides", "one.xml"),
        ("slides", "slides.csv"),
        ("slides", "two_mask.tif"),
        ("patches", "state/patches.jsonl"),
        ("slides", "state/slides/one.json"),
        ("slides", "state/work/one/tiles.u8"),
    ],
)
def test_files_of_others_are_refused_and_kept_with_and_without_fresh(place, kind, foreign, fresh):
    (place.out / foreign).parent.mkdir(parents=True)
    (place.out / foreign).write_text("mine")
    with pytest.raises(StateError, match=r"was not made by \./infer\.sh; move it away, or choose another OUTPUT_DIR"):
        place.run(kind, fresh=fresh)
    assert (place.out / foreign).read_text() == "mine"


@pytest.mark.parametrize("kind", ["patches", "slides"])
def test_fresh_deletes_what_was_recorded_and_nothing_else(place, kind):
    place.run(kind)
    kept = [place.out / name for name in ("notes.txt", "mask/mine.png", "three.xml", "state/mine.txt")]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    if kind == "slides":
        (place.out / "mask" / "mine.png").unlink()
        (place.top / "slides" / "two.tif").unlink()
        kept.remove(place.out / "mask" / "mine.png")
    else:
        (place.top / "patches" / "image" / "b.png").unlink()
    place.run(kind, fresh=True)
    assert {path.read_text() for path in kept} == {"mine"}
    left = _contents(place.out)
    assert not {"mask/b.png", "overlay/b.png", "two.xml", "state/slides/two.json"} & set(left)
    assert ("mask/a.png" in left) if kind == "patches" else ("one.xml" in left)


@pytest.mark.parametrize("name", ["../victim.txt", "/victim.txt", "..", "", "mask/../../victim.txt", "a\\b"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_record_that_names_files_elsewhere_is_refused(place, name, fresh):
    victim = place.top / "victim.txt"
    victim.write_text("mine")
    place.run("patches")
    record = place.out / "state" / "inference.json"
    content = json.loads(record.read_text())
    content["files"]["mask"][str(victim) if name == "/victim.txt" else name] = None
    record.write_text(json.dumps(content))
    before = _contents(place.out)
    with pytest.raises(DataError, match=r"state/inference\.json: .*choose another OUTPUT_DIR"):
        place.run("patches", fresh=fresh)
    assert victim.read_text() == "mine"
    assert _contents(place.out) == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"signature": {}, "written": ["../x"]}',
        "[" * 99999,
        "\udcff",
        '{"signature": {}, "files": {"elsewhere": {}}, "slides": []}',
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_damaged_record_is_one_line_and_nothing_is_deleted(place, content, fresh):
    place.run("patches")
    record = place.out / "state" / "inference.json"
    record.write_text(content, errors="surrogateescape")
    before = _contents(place.out)
    with pytest.raises(DataError) as caught:
        place.run("patches", fresh=fresh)
    assert "state/inference.json: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert _contents(place.out) == before


@pytest.mark.parametrize(
    "content", ["", "{", '{"of": {"path": "x"}, "row": null}', '{"of": 1, "row": {"slide": "../x"}}']
)
def test_a_damaged_record_of_a_slide_is_named(place, content):
    place.run("slides")
    (place.out / "state" / "slides" / "one.json").write_text(content)
    with pytest.raises(EpsamError, match=r"slide"):
        place.run("slides")
    assert "of two.tif" in (place.out / "two.xml").read_text()
    (place.out / "state" / "slides" / "one.json").unlink()
    for path in (*place.out.glob("one*"), *place.out.glob("pages/one*")):
        path.unlink()
    place.run("slides")


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[1]",
        '{"patch": "../../x", "image": "f0", "classifier_probability": 1, "segmented": 1, "tumour_fraction": 1}',
        '{"patch": "a", "classifier_probability": NaN, "segmented": 1, "tumour_fraction": 1}',
        "\udcff",
        "[" * 99999,
    ],
)
def test_damaged_notes_of_patches_are_named_and_can_be_deleted(place, line):
    place.run("patches")
    notes = place.out / "state" / "patches.jsonl"
    first = notes.read_text()
    notes.write_text(first + line + "\n", errors="surrogateescape")
    with pytest.raises(DataError, match=r"patches\.jsonl, line 3: .*delete the file"):
        place.run("patches")
    notes.unlink()
    place.run("patches")
    assert notes.read_text() == first


@pytest.mark.parametrize("kind", ["mask", "overlay"])
def test_deleted_masks_and_overlays_are_made_again(place, kind):
    place.run("patches")
    before = _contents(place.out)
    (place.out / kind / "a.png").unlink()
    place.run("patches")
    after = _contents(place.out)
    assert after[f"{kind}/a.png"] == before[f"{kind}/a.png"]
    assert after["predictions.csv"] == before["predictions.csv"]
    assert read_mask(place.out / "mask" / "a.png").all()


@pytest.mark.parametrize(
    ("kind", "edited", "missing"), [("slides", "one.xml", "one.geojson"), ("patches", "mask/a.png", "overlay/a.png")]
)
def test_what_somebody_changed_by_hand_is_neither_deleted_nor_replaced(place, kind, edited, missing):
    place.run(kind)
    (place.out / edited).write_text("corrected by a pathologist")
    with pytest.raises(StateError, match=r"was changed since \./infer\.sh wrote it"):
        place.run(kind, fresh=True)
    assert (place.out / missing).is_file(), "nothing is deleted before all is checked"
    (place.out / missing).unlink()
    with pytest.raises(EpsamError):
        place.run(kind)
    assert (place.out / edited).read_text() == "corrected by a pathologist"


@pytest.mark.parametrize("name", ["mask", "state"])
def test_folders_that_are_links_are_refused(place, name):
    place.run("patches")
    elsewhere = (place.out / name).rename(place.top / "elsewhere")
    (place.out / name).symlink_to(elsewhere)
    before = _contents(elsewhere)
    with pytest.raises(DataError, match=f"{name} is a link"):
        place.run("patches", fresh=True)
    assert _contents(elsewhere) == before


def test_every_slide_of_a_folder_has_outputs_of_its_own(place):
    for name in ("x.svs", "x.tif", "x.svs.tif"):
        (place.top / "slides" / name).write_text("a slide")
    place.run("slides")
    made = {path.read_text() for path in place.out.glob("*.xml")}
    assert made == {f"of {name}" for name in ("one.tif", "two.tif", "x.svs", "x.tif", "x.svs.tif")}
    paths = sorted((place.top / "slides").iterdir())
    assert output_names(paths, place.top / "slides") == output_names(paths[::-1], place.top / "slides")


def test_several_slides_and_folders_in_one_call(place):
    (place.top / "more" / "below").mkdir(parents=True)
    for name in ("two.tif", "below/three.tif", "below/one.tif"):
        (place.top / "more" / name).write_text("another slide")
    (place.top / "more" / "slides.csv").write_text("slide,exclude\nthree,torn\n")
    place.run("slides/one.tif", "more", "slides/../slides/one.tif")
    rows = {row["slide"]: row["status"] for row in read_csv(place.out / "slides.csv", ["slide", "status"])}
    assert rows == {"two": "ok", "three": "excluded", "slides_one.tif": "ok", "more_below_one.tif": "ok"}
    with pytest.raises(DataError, match=r"patches: a patch folder .* give it alone"):
        place.run("slides", "patches")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        place.run("slides", "nowhere")


def test_calls_for_other_inputs_or_with_other_settings_do_not_meet_in_the_default_folder(place):
    base = place.top / "runs" / "one"

    def made():
        return {folder.name: _contents(folder) for folder in base.parent.iterdir()}

    def run(*inputs, **changes):
        place.run(*inputs, output_dir=base, is_default_output=True, **changes)
        return made()

    shutil.copytree(place.top / "slides", place.top / "others")
    (place.top / "others" / "one.tif").write_text("another slide")
    first = run("slides/one.tif")
    assert set(first) == {"one"}
    assert run("slides/one.tif") == first
    second = run("others/one.tif")
    assert set(second) == {"one", "one-2"}
    assert second["one"] == first["one"]
    inference = place.config.inference.model_copy(update={"threshold": 0.7})
    other = {"config": place.config.model_copy(update={"inference": inference})}
    third = run("slides/one.tif", **other)
    assert set(third) == {"one", "one-2", "one-3"}
    assert run("slides/one.tif", **other) == third == run("slides/one.tif") == run("others/one.tif")
    fresh = run("slides/one.tif", fresh=True, **other)
    assert set(fresh) == {"one", "one-2", "one-3"}
    assert fresh["one"] != third["one"], "of the same slide, and to be replaced"
    (base.parent / "one-4").mkdir()
    (base.parent / "one-4" / "mine.txt").write_text("mine")
    (base.parent / "one-5" / "state").mkdir(parents=True)
    assert set(run("slides/two.tif")) == {"one", "one-2", "one-3", "one-4", "one-5"}
    assert (base.parent / "one-4" / "mine.txt").read_text() == "mine"


def test_the_default_folder_is_named_after_what_is_predicted(tmp_path):
    (tmp_path / "slides").mkdir()
    assert default_label([tmp_path / "a.ome.tif"]) == "a"
    assert default_label([tmp_path / "slides" / ".", tmp_path / "b.svs"]) == "slides_and_1_more"
    assert default_label([Path("/")]) == "slides"
    assert len(default_label([tmp_path / ("x" * 200 + ".tif")])) == 80
