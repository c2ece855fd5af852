"""The drawn slides, and the small SAM that goes with them."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from demo_sam.drawing import draw_example, draw_one
from demo_sam.measuring import crops, fresh_textures, mean_dice
from demo_sam.samples import draw_batch, load_examples
from demo_sam.train import Stage, train

from epsam.demo.slides import make_demo, write_annotation
from epsam.demo.tissue import draw_stain, draw_tissue
from epsam.errors import DataError, SlideError
from epsam.evaluation.metrics import dice
from epsam.prompts import PromptSet, points_from_mask
from epsam.runtime.checkpoints import load_tensors
from epsam.runtime.files import write_png
from epsam.sam.checkpoint import load_sam
from epsam.sam.decoder import predict_masks
from epsam.sam.demo_model import INPUT_PX, build_sam_demo
from epsam.slides.annotation_file import load_annotation
from epsam.slides.reader import open_slide

WEIGHTS = Path(__file__).parents[2] / "checkpoints" / "sam_demo.pth"
NO_BOXES = np.zeros((0, 4), np.float32)
GROUPS = {"tumour": ["Tumor"], "hole": ["Exclusion"]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    make_demo(folder, tumour=1, normal=1, size_px=800, workers=1)
    return folder


@pytest.fixture(scope="module")
def tumour_mask(dataset):
    size = open_slide(dataset / "images" / "tumor_001.tif").size
    return load_annotation(dataset / "annotations" / "tumor_001.xml", GROUPS).mask(0, 0, *size)


@pytest.fixture(scope="module")
def sam():
    return load_sam("demo", WEIGHTS)


def segment(sam, image, prompts):
    with torch.inference_mode():
        embedding = sam.image_encoder(sam.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None]))
        return (predict_masks(sam, embedding, [prompts], image.shape[:2])[0] > 0).numpy()


def contents(dataset):
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*_*.*"))}


def test_a_drawing_process_that_dies_is_named_and_the_next_call_goes_on(tmp_path, monkeypatch):
    def dies(function, tasks, workers):
        yield from ((task, SlideError("died")) for task in tasks)

    monkeypatch.setattr("epsam.demo.slides.run_tasks", dies)
    with pytest.raises(DataError, match=r"the process that drew tumor_001 died.*run the same command again"):
        make_demo(tmp_path / "demo", tumour=1, normal=1, size_px=600, workers=2)


def test_slides_open_with_resolution_levels_and_white_around_the_tissue(dataset):
    assert sorted(contents(dataset)) == ["annotations/tumor_001.xml", "images/normal_001.tif", "images/tumor_001.tif"]
    for path in (dataset / "images").iterdir():
        slide = open_slide(path)
        width, height = slide.size
        assert slide.mpp == pytest.approx((0.5, 0.5))
        assert slide.level_downsamples == pytest.approx((1, 2), abs=0.01)
        assert slide.read(0, 0, 64, 64).min() > 225
        centre = slide.read(width // 2 - 128, height // 2 - 128, 256, 256)
        assert centre.mean() < 210
        half = slide.read(0, 0, width // 2, height // 2, level=1).astype(int)
        shrunk = cv2.resize(slide.read(0, 0, width, height), (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        assert np.abs(half - shrunk).mean() < 4


def test_tumour_lies_inside_the_tissue(dataset, tumour_mask):
    slide = open_slide(dataset / "images" / "tumor_001.tif")
    saturation = np.ptp(slide.read(0, 0, *slide.size).astype(int), axis=2).astype(np.float32)
    assert 0.03 < tumour_mask.mean() < 0.5
    assert np.mean(cv2.blur(saturation, (31, 31))[tumour_mask] > 15) > 0.95


def test_tumour_has_fewer_dark_nuclei_than_the_tissue_around_it(dataset, tumour_mask):
    """What a classifier shall learn: small dark nuclei outside, large pale ones inside."""
    slide = open_slide(dataset / "images" / "tumor_001.tif")
    red = slide.read(0, 0, *slide.size)[..., 0]
    mask = tumour_mask.astype(np.uint8)
    core, far = cv2.erode(mask, np.ones((31, 31))) > 0, cv2.dilate(mask, np.ones((61, 61))) == 0
    around = far & (cv2.blur(red, (31, 31)) < 225)
    dark = red < np.quantile(red[tumour_mask], 0.2)
    assert dark[around].mean() > 1.3 * dark[core].mean()


def test_annotation_keeps_the_area_of_regions_and_holes(tmp_path):
    mask = np.zeros((400, 500), bool)
    mask[50:250, 60:360] = True
    mask[100:150, 100:200] = False
    mask[300:340, 400:480] = True
    write_annotation(tmp_path / "a.xml", mask)
    annotation = load_annotation(tmp_path / "a.xml", GROUPS)
    assert sorted(polygon.group for polygon in annotation.polygons) == ["Exclusion", "Tumor", "Tumor"]
    # Outlines pass through the centres of the outermost pixels, of which ASAP counts those on the right and below alone.
    assert annotation.fraction(0, 0, 500, 400) * mask.size == pytest.approx(mask.sum(), rel=0.025)
    assert np.mean(annotation.mask(0, 0, 500, 400) != mask) < 0.01


def test_annotation_agrees_with_the_drawn_mask(tmp_path):
    rng = np.random.default_rng(5)
    _, mask = draw_tissue((600, 700), True, draw_stain(rng), rng)
    write_annotation(tmp_path / "a.xml", mask)
    read = load_annotation(tmp_path / "a.xml", GROUPS).mask(0, 0, 700, 600)
    assert np.count_nonzero(read & mask) / np.count_nonzero(read | mask) > 0.98


def test_same_seed_same_slides_whatever_the_workers(dataset, tmp_path):
    make_demo(tmp_path, tumour=1, normal=1, size_px=800, workers=2)
    assert contents(tmp_path) == contents(dataset)


def test_drawing_goes_on_where_it_stopped_and_a_new_seed_draws_anew(tmp_path):
    make_demo(tmp_path, tumour=1, normal=1, size_px=600, workers=1)
    before = contents(tmp_path)
    untouched = (tmp_path / "images" / "normal_001.tif").stat().st_mtime_ns
    (tmp_path / "annotations" / "tumor_001.xml").unlink()
    make_demo(tmp_path, tumour=1, normal=1, size_px=600, workers=1)
    assert contents(tmp_path) == before
    assert (tmp_path / "images" / "normal_001.tif").stat().st_mtime_ns == untouched
    make_demo(tmp_path, seed=1, tumour=1, normal=1, size_px=600, workers=1)
    assert all(new != old for new, old in zip(contents(tmp_path).values(), before.values(), strict=True))


@pytest.mark.parametrize("name", ["images/tumor_001.tif", "images/normal_001.tif", "annotations/tumor_001.xml"])
@pytest.mark.parametrize("made_by_demo", [False, True])
@pytest.mark.parametrize("content", [b"a slide of somebody", b"", None])
def test_nothing_but_its_own_drawings_is_ever_replaced(tmp_path, name, made_by_demo, content):
    if made_by_demo:
        make_demo(tmp_path / "set", tumour=0, normal=0)
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True)
    if content is None:
        path = path.with_suffix(".czi")
        path.write_bytes(b"mine")
        (tmp_path / "set" / name).symlink_to(path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not a drawing of the demo|was not made by the demo"):
        make_demo(tmp_path / "set", tumour=1, normal=1, size_px=600, workers=1)
    assert path.read_bytes() == (b"mine" if content is None else content)
    assert len([p for p in (tmp_path / "set").rglob("*_*.*") if p.is_file()]) == (2 if content is None else 1)


def test_a_drawing_that_somebody_replaced_by_a_slide_is_kept(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "set")
    theirs = tmp_path / "set" / "images" / "normal_001.tif"
    tifffile.imwrite(theirs, np.zeros((64, 64, 3), np.uint8), description="a scanner", metadata=None)
    before = theirs.read_bytes()
    with pytest.raises(DataError, match=r"normal_001\.tif is not a drawing of the demo"):
        make_demo(tmp_path / "set", seed=1, tumour=1, normal=1, size_px=800, workers=1)
    assert theirs.read_bytes() == before


def test_textures_are_reproducible_and_every_region_is_large_enough():
    for number in range(6):
        image, regions = draw_example(np.random.default_rng(number))
        again = draw_example(np.random.default_rng(number))
        assert (image == again[0]).all()
        assert (regions == again[1]).all()
        assert image.shape == (INPUT_PX, INPUT_PX, 3)
        assert image.dtype == np.uint8
        assert 2 <= regions.max() + 1 <= 4
        assert np.bincount(regions.ravel()).min() >= 0.06 * regions.size


def test_prompts_of_a_batch_lie_in_what_they_ask_for(tmp_path):
    examples = load_examples(tmp_path / "few.npz", 6, "training", 0)
    assert (examples.images[3] == draw_one("training", 0, 3)[0]).all()
    kinds = set()
    for number in range(30):
        batch = draw_batch(examples, 4, np.random.default_rng(number), prompts=3, turned=True, boxes=True)
        kinds.add((batch.points is not None, batch.boxes is not None))
        for row, owner in enumerate(batch.owners):
            mask = batch.masks[row].numpy()
            assert len(np.unique(batch.regions[owner][mask])) == 1
            if batch.points is not None:
                assert 1 <= batch.points.shape[1] <= 50
                x, y = batch.points[row].long().numpy().T
                assert mask[y, x].all()
            if batch.boxes is not None:
                rows, columns = np.nonzero(mask)
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert batch.boxes[row].tolist() == box
    assert kinds == {(True, False), (False, True), (True, True)}


def test_demo_sam_is_small_and_its_shipped_weights_fit(sam):
    assert 1e6 < sum(p.numel() for p in build_sam_demo().parameters()) < 2e6
    assert WEIGHTS.stat().st_size <= 16 * 2**20
    with torch.inference_mode():
        assert sam.image_encoder(torch.zeros(1, 3, INPUT_PX, INPUT_PX)).shape == (1, 128, 32, 32)


def test_demo_sam_segments_textures_it_has_not_seen(sam):
    pairs = list(fresh_textures(24))
    ones = np.mean([2 * mask.mean() / (1 + mask.mean()) for _, mask in pairs])
    assert mean_dice(sam, pairs, 8) > max(0.7, ones + 0.15)


def test_demo_sam_answers_the_points_it_is_given(sam):
    """Points inside a region give a mask that fits it better than points outside of it do."""
    inside, outside = [], []
    for image, mask in fresh_textures(12):
        for wanted, scores in ((mask, inside), (~mask, outside)):
            points = points_from_mask(wanted, 8, np.random.default_rng(0))
            guess = segment(sam, image, PromptSet(points, NO_BOXES))
            scores.append(dice(guess, mask))
    assert np.mean(inside) > np.mean(outside) + 0.1


def test_training_goes_on_where_it_stopped(tmp_path):
    encoder, decoder, both = (Stage(name, 1, 2, 2, 1e-3) for name in ("encoder", "decoder", "both"))
    train(tmp_path / "at_once", tmp_path / "at_once.pth", 0, 8, (encoder, decoder, both))
    train(tmp_path / "in_parts", tmp_path / "in_parts.pth", 0, 8, (encoder,))
    train(tmp_path / "in_parts", tmp_path / "in_parts.pth", 0, 8, (encoder, decoder, both))
    at_once, in_parts = (load_sam("demo", tmp_path / f"{name}.pth").state_dict() for name in ("at_once", "in_parts"))
    assert all(torch.equal(at_once[name], in_parts[name]) for name in at_once)


def test_crops_of_a_folder_without_images_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no pairs"):
        list(crops(tmp_path))
    image, mask = draw_one("fresh", 0, 0)
    write_png(tmp_path / "images" / "a.png", np.tile(image, (2, 3, 1)))
    write_png(tmp_path / "masks" / "a.png", np.tile(mask > 0, (2, 3)))
    write_png(tmp_path / "images" / "without_mask.png", image)
    assert len(list(crops(tmp_path))) == 6


def test_shipped_weights_are_half_precision():
    assert {value.dtype for value in load_tensors(WEIGHTS).values()} == {torch.float16}
