"""./infer.sh from the inside: patches and slides in, files and figures out, and what it refuses."""

import csv
import dataclasses
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
import torch
from shapely.geometry import shape

from epsam.classifier.building import build_classifier
from epsam.config.loading import load_config
from epsam.demo.slides import make_demo
from epsam.errors import CheckpointError, DataError, SlideError, StateError
from epsam.inference.output import OUTPUTS
from epsam.inference.run import InferenceSettings, infer
from epsam.runtime.checkpoints import save_weights
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import read_image, read_mask, write_png
from epsam.sam.checkpoint import decoder_weights, load_sam
from epsam.slides.annotation_file import load_annotation
from epsam.slides.reader import open_slide
from epsam.student.network import build_student
from tests.slide_factory import write_leica
from tests.tiny import SETTINGS

WEIGHTS = Path(__file__).parents[2] / "checkpoints"
APERIO = Path(__file__).parents[3] / "shared" / "data" / "wsi" / "cmu-1-small-region.svs"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A slide with its annotation, a classifier that sees tumour everywhere, the demo's SAM, and settings."""
    top = tmp_path_factory.mktemp("trained")
    make_demo(top, tumour=1, normal=0, size_px=640, workers=1)
    (top / "tiny.yaml").write_text(SETTINGS)
    overrides = (
        "cam.threshold=0.1",
        "inference.classifier_probability=0",
        "inference.min_focus_um2=125",
        "inference.threshold=0.3",
        "inference.overlap=0.25",
        "cam.rotations=[0]",
    )
    config = load_config(top / "tiny.yaml", overrides)
    torch.manual_seed(0)
    save_weights(top / "resnet.pth", build_classifier(config.classifier).state_dict(), {})
    save_weights(top / "decoder.pth", decoder_weights(load_sam("demo", None, WEIGHTS)), {})
    return InferenceSettings(
        top / "images" / "tumor_001.tif",
        top / "resnet.pth",
        None,
        top / "decoder.pth",
        top / "nowhere",
        config,
        weights_dir=WEIGHTS,
    )


@pytest.fixture
def settings(trained, tmp_path):
    return dataclasses.replace(trained, output_dir=tmp_path / "out")


@pytest.fixture
def patch_folder(settings, tmp_path):
    """Three patches of the slide: two positives with masks, one negative without."""
    slide = open_slide(settings.test_dataset_dir)
    xml = settings.test_dataset_dir.parents[1] / "annotations" / "tumor_001.xml"
    annotation = load_annotation(xml, {"tumour": ["Tumor"], "hole": ["Exclusion"]})
    x0, y0 = (int(v) for v in annotation.bounds()[:2])
    for name, x, y in (("a_1", x0, y0), ("b_1", x0 + 64, y0 + 64), ("c_0", 0, 0)):
        write_png(tmp_path / "patches" / "image" / f"{name}.png", slide.read(x, y, 128, 128))
        if name.endswith("1"):
            write_png(tmp_path / "patches" / "mask" / f"{name}.png", annotation.mask(x, y, 128, 128))
    return tmp_path / "patches"


@pytest.fixture(scope="module")
def hardware():
    return choose_hardware("cpu")


def outputs_of(folder, name="tumor_001"):
    return {suffix: (folder / (name + suffix)).read_bytes() for suffix in OUTPUTS}


def with_settings(settings, section, **changes):
    changed = getattr(settings.config, section).model_copy(update=changes)
    return dataclasses.replace(settings, config=settings.config.model_copy(update={section: changed}))


def with_inference(settings, **changes):
    return with_settings(settings, "inference", **changes)


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_slide_gives_all_outputs_and_its_figures(settings, hardware, caplog):
    caplog.set_level(logging.INFO)
    infer(settings, hardware)
    out = settings.output_dir
    slide = open_slide(settings.test_dataset_dir)
    mask = openslide.OpenSlide(out / "tumor_001_mask.tif")
    assert mask.level_dimensions == slide.level_sizes
    assert float(mask.properties["openslide.mpp-x"]) == pytest.approx(slide.mpp[0])
    area = (np.asarray(mask.read_region((0, 0), 0, slide.size))[..., 0] > 0).sum()
    (row,) = rows_of(out / "slides.csv")
    assert area > 0
    assert float(row["tumour_px2"]) == pytest.approx(area, rel=0.005)
    assert float(row["tumour_mm2"]) == pytest.approx(area * slide.mpp[0] * slide.mpp[1] * 1e-6, rel=0.005)
    features = json.loads((out / "tumor_001.geojson").read_text())["features"]
    assert len(features) == int(row["foci"])
    assert read_image(out / "tumor_001_overlay.png").shape[0] > 600
    assert f"[result] slide=tumor_001 tumour_mm2={float(row['tumour_mm2']):.4f} tumour_fraction=" in caplog.text
    assert not list((out / "state" / "work").iterdir())


@pytest.fixture
def student(settings, monkeypatch):
    """Settings with a student of random weights, and no way to load SAM or the classifier."""

    def never(*_, **__):
        raise AssertionError("the student needs no other network")

    monkeypatch.setattr("epsam.inference.models.load_sam", never)
    monkeypatch.setattr("epsam.inference.models.load_classifier", never)
    torch.manual_seed(0)
    path = settings.output_dir.parent / "student.pth"
    save_weights(path, build_student(settings.config.classifier).state_dict(), {})
    nowhere = Path("/nowhere/resnet.pth")
    return dataclasses.replace(
        settings, resnet_checkpoint=nowhere, sam_decoder_checkpoint=None, student_checkpoint=path
    )


def test_the_student_alone_gives_all_outputs_of_a_slide(student, hardware):
    infer(with_inference(student, classifier_probability=0.9, threshold=0.01), hardware)
    assert outputs_of(student.output_dir)
    row = rows_of(student.output_dir / "slides.csv")[0]
    assert row["status"] == "ok"
    assert 0.5 < float(row["tumour_fraction"]) <= 1, "every tile of tissue was segmented"
    assert float(row["tumour_mm2"]) <= float(row["tissue_mm2"])
    with pytest.raises(CheckpointError, match="STUDENT_CHECKPOINT.*a classifier.*RESNET_CHECKPOINT"):
        other = student.output_dir.parent / "resnet.pth"
        save_weights(other, build_classifier(student.config.classifier).state_dict(), {})
        infer(dataclasses.replace(student, student_checkpoint=other, output_dir=student.output_dir / "2"), hardware)


def test_the_student_segments_every_patch_and_names_no_classifier_probability(student, hardware, patch_folder):
    infer(dataclasses.replace(student, test_dataset_dir=patch_folder), hardware)
    rows = rows_of(student.output_dir / "predictions.csv")
    assert [(row["status"], row["segmented"], row["classifier_probability"]) for row in rows] == [("ok", "1", "")] * 3
    before = (student.output_dir / "predictions.csv").read_bytes()
    other_prompts = with_settings(student, "prompts", points=3)
    infer(dataclasses.replace(other_prompts, test_dataset_dir=patch_folder), hardware)
    assert (student.output_dir / "predictions.csv").read_bytes() == before, "a student takes no prompts"


def test_a_stopped_slide_does_not_go_on_in_another_order_of_tiles(student, hardware):
    infer(student, hardware)
    with pytest.raises(StateError, match=r"seed.*--fresh"):
        infer(with_settings(student, "finetune", seed=student.config.finetune.seed + 1), hardware)


def test_a_slide_killed_in_the_middle_ends_with_the_same_bytes(settings, hardware, tmp_path):
    infer(settings, hardware)
    killed = dataclasses.replace(settings, output_dir=tmp_path / "killed")
    script = (
        "import pickle, sys; from epsam.inference.run import infer; "
        "from epsam.runtime.device import choose_hardware; "
        "infer(pickle.load(open(sys.argv[1], 'rb')), choose_hardware('cpu'))"
    )
    (tmp_path / "settings.pickle").write_bytes(pickle.dumps(killed))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "settings.pickle")],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    written = tmp_path / "killed" / "state" / "work" / "tumor_001" / "classified.f32"
    while process.poll() is None and not (written.is_file() and written.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "tumor_001.geojson").exists()
    infer(killed, hardware)
    assert outputs_of(tmp_path / "killed") == outputs_of(settings.output_dir)
    assert (settings.output_dir / "slides.csv").read_text() == (tmp_path / "killed" / "slides.csv").read_text()


def test_what_is_done_is_kept_unless_fresh(settings, hardware):
    infer(settings, hardware)
    xml, notes = settings.output_dir / "tumor_001.xml", settings.output_dir / "notes.txt"
    xml.write_text("edited by hand")
    notes.write_text("mine")
    infer(settings, hardware)
    assert xml.read_text() == "edited by hand"
    glass = settings.output_dir.parent / "glass.tif"
    tifffile.imwrite(glass, np.full((300, 300, 3), 245, np.uint8), tile=(64, 64), photometric="rgb")
    infer(dataclasses.replace(settings, test_dataset_dir=glass), hardware)
    assert [row["slide"] for row in rows_of(settings.output_dir / "slides.csv")] == ["glass", "tumor_001"]
    other = with_inference(settings, threshold=0.6)
    with pytest.raises(StateError, match=r"inference.*--fresh"):
        infer(other, hardware)
    with pytest.raises(StateError, match=r"tumor_001\.xml was changed since"):
        infer(dataclasses.replace(other, fresh=True), hardware)
    edited = xml.rename(settings.output_dir / "edited.xml")
    infer(dataclasses.replace(other, fresh=True), hardware)
    assert "ASAP_Annotations" in xml.read_text()
    assert edited.read_text() == "edited by hand"
    assert notes.read_text() == "mine"


def test_one_bad_slide_does_not_stop_the_others(settings, hardware, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(settings.test_dataset_dir, slides / "good.tif")
    data = settings.test_dataset_dir.read_bytes()
    (slides / "cut.tif").write_bytes(data[: len(data) // 2])
    (slides / "readme.txt").write_text("not a slide")
    with pytest.raises(DataError, match=r"1 of 2 slides.*cut"):
        infer(dataclasses.replace(settings, test_dataset_dir=slides), hardware)
    assert {row["slide"]: row["status"] for row in rows_of(settings.output_dir / "slides.csv")} == {
        "cut": "failed",
        "good": "ok",
    }
    assert all(outputs_of(settings.output_dir, "good").values())


def test_patches_with_masks_give_figures_masks_and_overlays(settings, hardware, patch_folder, caplog):
    caplog.set_level(logging.INFO)
    infer(dataclasses.replace(settings, test_dataset_dir=patch_folder), hardware)
    rows = {row["patch"]: row for row in rows_of(settings.output_dir / "predictions.csv")}
    assert set(rows) == {"a_1", "b_1", "c_0"}
    assert rows["c_0"]["dice"] == ""
    dice = []
    for name in ("a_1", "b_1"):
        predicted = read_mask(settings.output_dir / "mask" / f"{name}.png")
        truth = read_mask(patch_folder / "mask" / f"{name}.png")
        dice.append(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
        assert float(rows[name]["dice"]) == pytest.approx(dice[-1], abs=1e-4)
        height, width, _ = read_image(settings.output_dir / "overlay" / f"{name}.png").shape
        assert width == 512, "a small patch is enlarged so that its outlines can be seen"
        assert height > 512, "the legend lies below"
    assert f"[result] split=patches method=final dice={np.mean(dice):.4f} iou=" in caplog.text
    assert "patches=2" in caplog.text


def test_patches_without_masks_give_predictions_only(settings, hardware, patch_folder, caplog):
    caplog.set_level(logging.INFO)
    shutil.rmtree(patch_folder / "mask")
    (patch_folder / "image" / "a_1.png").rename(patch_folder / "image" / "unlabelled.png")
    infer(dataclasses.replace(settings, test_dataset_dir=patch_folder), hardware)
    assert len(rows_of(settings.output_dir / "predictions.csv")) == 3
    assert read_mask(settings.output_dir / "mask" / "unlabelled.png").shape == (128, 128)
    assert "[result]" not in caplog.text


def test_patches_go_on_after_those_that_are_done(settings, hardware, patch_folder):
    settings = dataclasses.replace(settings, test_dataset_dir=patch_folder)
    infer(settings, hardware)
    first = (settings.output_dir / "predictions.csv").read_text()
    notes = settings.output_dir / "state" / "patches.jsonl"
    lines = notes.read_text().splitlines(keepends=True)
    notes.write_text(lines[0] + lines[1][:10])
    for name in ("b_1", "c_0"):
        (settings.output_dir / "mask" / f"{name}.png").unlink()
    kept = (settings.output_dir / "mask" / "a_1.png").stat().st_mtime_ns
    infer(settings, hardware)
    assert (settings.output_dir / "predictions.csv").read_text() == first
    assert (settings.output_dir / "mask" / "a_1.png").stat().st_mtime_ns == kept


def test_data_that_cannot_be_meant_are_refused(settings, hardware, patch_folder, tmp_path):
    def refused(match, error=DataError, **changes):
        with pytest.raises(error, match=match):
            infer(dataclasses.replace(settings, **changes), hardware)
        assert not (tmp_path / "out" / "predictions.csv").exists()

    refused("no such file", test_dataset_dir=tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    refused("neither a patch folder", test_dataset_dir=tmp_path / "empty")
    (tmp_path / "broken.svs").write_bytes(b"no slide at all")
    refused("broken.svs", SlideError, test_dataset_dir=tmp_path / "broken.svs")
    refused("inside", test_dataset_dir=patch_folder, output_dir=patch_folder / "out")
    refused("folder of the slide", output_dir=settings.test_dataset_dir.parent)
    (tmp_path / "file").write_text("")
    refused("is a file", output_dir=tmp_path / "file")
    write_png(patch_folder / "mask" / "b_1.png", np.ones((64, 128), bool))
    refused(r"b_1.png: 128 x 64 px, but its patch has 128 x 128", test_dataset_dir=patch_folder)
    for mask in (patch_folder / "mask").iterdir():
        mask.rename(mask.with_name("mask_" + mask.name))
    refused("none of its 2 masks has the name of a patch", test_dataset_dir=patch_folder)
    shutil.rmtree(patch_folder / "image")
    (patch_folder / "image").mkdir()
    refused("no picture", test_dataset_dir=patch_folder)


def test_a_patch_folder_is_no_output_dir(settings, hardware, patch_folder):
    masks = sorted((patch_folder / "mask").iterdir())
    with pytest.raises(DataError, match="is a patch folder"):
        infer(dataclasses.replace(settings, output_dir=patch_folder, fresh=True), hardware)
    assert sorted((patch_folder / "mask").iterdir()) == masks


def test_files_of_others_are_not_overwritten(settings, hardware):
    settings.output_dir.mkdir()
    (settings.output_dir / "tumor_001.xml").write_text("drawn by a pathologist")
    with pytest.raises(StateError, match=r"tumor_001\.xml"):
        infer(settings, hardware)
    assert (settings.output_dir / "tumor_001.xml").read_text() == "drawn by a pathologist"


def test_swapped_checkpoints_are_named(settings, hardware):
    resnet, decoder, sam = settings.resnet_checkpoint, settings.sam_decoder_checkpoint, WEIGHTS / "sam_demo.pth"
    for changes, message in (
        ({"resnet_checkpoint": decoder}, "RESNET_CHECKPOINT.*a SAM mask decoder.*SAM_DECODER_CHECKPOINT"),
        ({"sam_decoder_checkpoint": resnet}, "SAM_DECODER_CHECKPOINT.*a classifier.*RESNET_CHECKPOINT"),
        ({"sam_checkpoint": decoder}, "SAM_CHECKPOINT.*a SAM mask decoder.*SAM_DECODER_CHECKPOINT"),
        ({"sam_decoder_checkpoint": sam}, "SAM_DECODER_CHECKPOINT.*a whole SAM"),
        ({"resnet_checkpoint": Path("missing.pth")}, "missing.pth: no such checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=message):
            infer(dataclasses.replace(settings, **changes), hardware)


def test_a_slide_without_resolution_is_measured_in_pixels(settings, hardware, tmp_path):
    slide = tmp_path / "plain.tif"
    with open_slide(settings.test_dataset_dir) as source:
        tifffile.imwrite(slide, source.read(0, 0, 300, 260), tile=(64, 64), photometric="rgb")
    infer(dataclasses.replace(settings, test_dataset_dir=slide), hardware)
    mask = openslide.OpenSlide(settings.output_dir / "plain_mask.tif")
    assert mask.level_dimensions == ((300, 260),)
    assert "openslide.mpp-x" not in mask.properties
    (row,) = rows_of(settings.output_dir / "slides.csv")
    assert row["tumour_mm2"] == ""
    assert 0 < float(row["tumour_px2"]) <= 300 * 260


def test_outlines_of_a_slide_with_bounds_count_from_them_in_qupath_and_from_the_glass_in_asap(
    settings, hardware, tmp_path
):
    corner = np.array([192, 96])
    with open_slide(settings.test_dataset_dir) as source:
        path = write_leica(tmp_path / "bounded.scn", source.read(100, 100, 320, 256), tuple(corner), (768, 640))
    infer(dataclasses.replace(settings, test_dataset_dir=path), hardware)
    mask = tifffile.imread(settings.output_dir / "bounded_mask.tif", level=0) > 0
    assert mask.shape == (640, 768)
    assert mask.any()
    features = json.loads((settings.output_dir / "bounded.geojson").read_text())["features"]
    region = shapely.union_all([shape(feature["geometry"]) for feature in features])
    # As in ASAP, a pixel on the right or lower edge of a polygon belongs to it, one on the left or upper edge does not.
    columns, rows = np.meshgrid(np.arange(768) - 1e-6, np.arange(640) - 1e-6)
    from_geojson = shapely.contains_xy(region, columns - corner[0], rows - corner[1])
    # How much of a border's pixels lie on an edge depends on the mask; moved by one pixel, it differs by 0.6 px per px of border.
    assert (from_geojson ^ mask).sum() <= 0.2 * region.length
    groups = {"tumour": ["Tumor"], "hole": ["Exclusion"]}
    from_xml = load_annotation(settings.output_dir / "bounded.xml", groups).mask(0, 0, 768, 640)
    assert (from_xml ^ mask).sum() <= 0.005 * mask.sum()


@pytest.mark.skipif(not APERIO.is_file(), reason="needs ../shared")
def test_a_scanned_slide_at_another_resolution(settings, hardware):
    patches = settings.config.patches.model_copy(update={"target_mpp": 2.0})
    config = settings.config.model_copy(update={"patches": patches})
    infer(dataclasses.replace(settings, test_dataset_dir=APERIO, config=config), hardware)
    slide = open_slide(APERIO)
    for kind in ("mask", "probability"):
        written = openslide.OpenSlide(settings.output_dir / f"{APERIO.stem}_{kind}.tif")
        assert written.level_dimensions[: len(slide.level_sizes)] == slide.level_sizes
        assert float(written.properties["openslide.mpp-x"]) == pytest.approx(slide.mpp[0])
    (row,) = rows_of(settings.output_dir / "slides.csv")
    assert float(row["tumour_px2"]) > 0
    assert all(outputs_of(settings.output_dir, APERIO.stem).values())


def test_glass_without_tissue_gives_empty_outputs(settings, hardware, tmp_path, caplog):
    tifffile.imwrite(tmp_path / "glass.tif", np.full((300, 300, 3), 245, np.uint8), tile=(64, 64), photometric="rgb")
    infer(dataclasses.replace(settings, test_dataset_dir=tmp_path / "glass.tif"), hardware)
    assert "no tissue was found" in caplog.text
    (row,) = rows_of(settings.output_dir / "slides.csv")
    assert (row["foci"], float(row["tumour_fraction"])) == ("0", 0)
    assert not tifffile.imread(settings.output_dir / "glass_mask.tif").any()
    grey = np.full((300, 300, 3), 120, np.uint8)  # as a slide exported without its colours
    tifffile.imwrite(tmp_path / "grey.tif", grey, tile=(64, 64), photometric="rgb")
    with pytest.raises(SlideError, match="has no colour"):
        infer(dataclasses.replace(settings, test_dataset_dir=tmp_path / "grey.tif"), hardware)
