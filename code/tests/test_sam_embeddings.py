"""The embedding store: the same as encoding anew, resumable, and never of something else."""

import itertools
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from epsam.errors import DataError, EpsamError, StateError
from epsam.patches.patch import patches_for_sam
from epsam.runtime.checkpoints import save_tensors
from epsam.runtime.files import read_image, read_mask, write_png
from epsam.runtime.views import VIEWS, apply_view, undo_view
from epsam.sam.checkpoint import load_sam
from epsam.sam.demo_model import build_sam_demo
from epsam.sam.embeddings import open_embeddings
from epsam.sam.samples import (
    Batches,
    LabelledExample,
    LabelledSamples,
    PredictionSamples,
    examples_of,
    load_batches,
)
from epsam.stages.embed import embed, views_that_fit
from epsam.workspace import SPLITS
from tests.sam_factory import COUNTS, CPU, make_config, make_patches


@pytest.fixture
def stored(tmp_path):
    workspace, config = make_patches(tmp_path), make_config(tmp_path)
    embed(config, workspace, CPU)
    return workspace, config


def _sam(config):
    return load_sam("demo", config.sam.checkpoint)


def test_the_store_holds_what_the_encoder_says(stored):
    workspace, config = stored
    sam = _sam(config)
    for split in SPLITS:
        kept = open_embeddings(config, workspace, CPU, sam, split)
        anew = open_embeddings(make_config(workspace.root, sam={"embeddings": "off"}), workspace, CPU, sam, split)
        assert kept.views == anew.views == (2 if split == "train" else 1)
        keys = [(position, view) for position in range(COUNTS[split]) for view in range(kept.views)]
        one, other = (source.batch([source.item(*key) for key in keys]) for source in (kept, anew))
        assert one.shape == (len(keys), 128, 32, 32)
        torch.testing.assert_close(one, other, atol=5e-3, rtol=0)
        assert one.std() > 0.1


def test_an_interrupted_store_goes_on_with_what_is_missing(stored):
    workspace, config = stored
    folder = workspace.embeddings("train")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(whole) == {"store.json", "shard_00000.npy"}
    shard = folder / "shard_00000.npy"
    shard.write_bytes(whole[shard.name][:-1000])
    with pytest.raises(StateError, match=r"shard_00000.npy is truncated or damaged \(1 of 1 shards\)"):
        open_embeddings(config, workspace, CPU, _sam(config), "train")
    other = workspace.embeddings("val") / "shard_00000.npy"
    untouched = other.stat().st_mtime_ns
    embed(config, workspace, CPU)
    assert shard.read_bytes() == whole[shard.name]
    assert other.stat().st_mtime_ns == untouched
    shard.unlink()
    with pytest.raises(StateError, match="shard_00000.npy is missing"):
        open_embeddings(config, workspace, CPU, _sam(config), "train")


def test_shards_split_the_patches(tmp_path, monkeypatch):
    monkeypatch.setattr("epsam.sam.store.SHARD_PATCHES", 3)
    workspace, config = make_patches(tmp_path), make_config(tmp_path)
    embed(config, workspace, CPU)
    shards = sorted(workspace.embeddings("train").glob("shard_*.npy"))
    assert [len(np.load(path)) for path in shards] == [3, 3, 2]
    kept = open_embeddings(config, workspace, CPU, _sam(config), "train")
    anew = open_embeddings(
        make_config(tmp_path, sam={"embeddings": "off"}), workspace, CPU, kept_sam := _sam(config), "train"
    )
    torch.testing.assert_close(kept.batch([kept.item(7, 1)]), anew.batch([anew.item(7, 1)]), atol=5e-3, rtol=0)
    assert kept_sam is anew.sam


def test_a_store_of_something_else_is_refused_by_name(stored):
    workspace, config = stored
    with pytest.raises(StateError, match=r"train was made from something else \(views: 2 there, 3 here\)"):
        open_embeddings(make_config(workspace.root, sam={"views": 3}), workspace, CPU, _sam(config), "train")

    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_tensors(workspace.checkpoints / "other.pth", build_sam_demo().state_dict())
    other = load_sam("demo", workspace.checkpoints / "other.pth")
    with pytest.raises(StateError, match=r"\(encoder: [0-9a-f]+ there, [0-9a-f]+ here\)"):
        open_embeddings(config, workspace, CPU, other, "val")

    images = workspace.split("train") / "image"
    write_png(images / "train_x0_y0_1.png", np.zeros((96, 128, 3), np.uint8))
    (images / "train_x1_y0_1.png").rename(images / "new_x1_y0_1.png")
    with pytest.raises(StateError) as caught:
        open_embeddings(config, workspace, CPU, _sam(config), "train")
    for part in ("missing there: new_x1_y0_1", "no longer here: train_x1_y0_1", "another image: train_x0_y0_1"):
        assert part in str(caught.value)
    embed_anew = replace(CPU, encoder_batch=3)
    (images / "new_x1_y0_1.png").rename(images / "train_x1_y0_1.png")
    embed(config, workspace, embed_anew)
    assert open_embeddings(config, workspace, CPU, _sam(config), "train").views == 2


def test_no_store_says_which_stage_is_missing(tmp_path):
    workspace, config = make_patches(tmp_path), make_config(tmp_path)
    with pytest.raises(StateError, match="no embeddings there; run the stage embed, or set sam.embeddings=off"):
        open_embeddings(config, workspace, CPU, _sam(config), "train")


def test_views_are_lowered_to_what_the_disk_holds(tmp_path, caplog):
    free = psutil.disk_usage(str(tmp_path)).free
    assert views_that_fit(4, lambda views: views, tmp_path / "not" / "yet") == 4
    assert not caplog.records[:-1]
    assert views_that_fit(4, lambda views: views * free // 3, tmp_path) == 2
    assert "continuing with 2" in caplog.text
    with pytest.raises(EpsamError, match="the embeddings need .*iB, .*iB of the disk are free; make room"):
        views_that_fit(4, lambda views: views * free * 2, tmp_path)


def test_views_are_the_eight_symmetries():
    array = np.arange(12).reshape(3, 4)
    seen = {apply_view(array, view).tobytes() + bytes(apply_view(array, view).shape) for view in range(len(VIEWS))}
    assert len(seen) == 8
    np.testing.assert_array_equal(apply_view(array, 0), array)
    for view in range(len(VIEWS)):
        np.testing.assert_array_equal(undo_view(apply_view(array, view), view), array)


@pytest.mark.parametrize("prompts_from", ["mask", "cam"])
def test_image_mask_and_prompts_of_a_view_line_up(tmp_path, prompts_from):
    workspace = make_patches(tmp_path)
    config = make_config(
        tmp_path,
        sam={"embeddings": "off", "views": 8},
        finetune={"prompts_from": prompts_from},
        prompts={"kind": "both", "points": 40},
    )
    patches = patches_for_sam(workspace, "train")
    examples = [LabelledExample.of(example, example.patch.mask) for example in examples_of(workspace, "train", patches)]
    samples = LabelledSamples(
        examples, open_embeddings(config, workspace, CPU, _sam(config), "train"), config, "train", True
    )
    shapes = set()
    for index in range(len(examples)):
        for draw in range(6):
            sample = samples[index, draw]
            shapes.add(sample.target.shape)
            dark = sample.item.float().mean(0).numpy() < 130  # the drawn tumour is darker than the rest
            scale = dark.shape[0] / sample.target.shape[0]
            assert dark.shape == tuple(round(side * scale) for side in sample.target.shape)
            x, y = sample.prompts.points.astype(int).T
            inside = sample.target[y, x]
            assert inside.all() if prompts_from == "mask" else inside.mean() > 0.4
            at_points = dark[((y + 0.5) * scale).astype(int), ((x + 0.5) * scale).astype(int)]
            assert (at_points == inside).mean() > 0.8
            big = np.kron(sample.target, np.ones((round(scale), round(scale)))) > 0
            assert 2 * (big & dark).sum() / (big.sum() + dark.sum()) > 0.9
            x0, y0, x1, y1 = sample.prompts.boxes[0].astype(int)
            assert sample.target[y0:y1, x0:x1].sum() > 0.95 * sample.target.sum()
    assert shapes == {(96, 128), (128, 96)}


@pytest.mark.parametrize("embeddings", ["on", "off"])
def test_samples_read_ahead_are_those_read_one_by_one(stored, embeddings):
    workspace, _ = stored
    config = make_config(workspace.root, sam={"embeddings": embeddings})
    source = open_embeddings(config, workspace, CPU, _sam(config), "train")
    samples = PredictionSamples(examples_of(workspace, "train", patches_for_sam(workspace, "train")), source, config)
    batches = list(load_batches(samples, Batches(len(samples.examples), 3, seed=1), threads=2))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    for index, there in zip(
        itertools.chain(*Batches(len(samples.examples), 3, seed=1)), itertools.chain(*batches), strict=True
    ):
        here = samples[index]
        assert there.example is here.example
        torch.testing.assert_close(there.items, here.items, rtol=0, atol=0)
        np.testing.assert_array_equal(there.prompts.points, here.prompts.points)


def test_a_draw_depends_on_its_number_and_name_alone(tmp_path):
    workspace, config = make_patches(tmp_path), make_config(tmp_path, sam={"embeddings": "off", "views": 8})
    patches = patches_for_sam(workspace, "train")
    examples = [LabelledExample.of(example, example.patch.mask) for example in examples_of(workspace, "train", patches)]
    source = open_embeddings(config, workspace, CPU, _sam(config), "train")
    forward = LabelledSamples(examples, source, config, "train", True)
    backward = LabelledSamples(examples[::-1], source, config, "train", True)
    last = len(examples) - 1
    np.testing.assert_array_equal(forward[2, 5].prompts.points, backward[last - 2, 5].prompts.points)
    assert not np.array_equal(forward[2, 5].prompts.points, forward[2, 6].prompts.points)
    plain = LabelledSamples(examples, source, config, "predict")[2, 0]
    np.testing.assert_array_equal(plain.target, read_mask(examples[2].target))
    assert plain.size == read_image(patches[2].path).shape[:2]


def test_some_points_are_for_training_alone(tmp_path):
    workspace = make_patches(tmp_path)
    config = make_config(tmp_path, sam={"embeddings": "off"}, finetune={"prompts_from": "cam", "points": "some"})
    patches = patches_for_sam(workspace, "train")
    examples = [LabelledExample.of(example, example.patch.mask) for example in examples_of(workspace, "train", patches)]
    embeddings = open_embeddings(config, workspace, CPU, _sam(config), "train")

    def counts(augmented: bool) -> set[int]:
        samples = LabelledSamples(examples, embeddings, config, "train", augmented)
        return {len(np.unique(samples[index, 0].prompts.points, axis=0)) for index in range(len(examples))}

    assert len(counts(augmented=True)) > 1
    assert counts(augmented=False) == {10}


def test_a_flipped_bit_in_a_shard_is_named_and_that_shard_alone_made_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("epsam.sam.store.SHARD_PATCHES", 3)
    workspace, config = make_patches(tmp_path), make_config(tmp_path)
    embed(config, workspace, CPU)
    folder = workspace.embeddings("train")
    whole = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("shard_*.npy")}
    shard = folder / "shard_00001.npy"
    with shard.open("r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)[0]
        stream.seek(5000)
        stream.write(bytes([byte ^ 4]))
    with pytest.raises(
        StateError, match=r"shard_00001.npy is damaged: its SHA-256 .* \(1 of 3 shards\); run the stage embed"
    ):
        open_embeddings(config, workspace, CPU, _sam(config), "train")
    caplog.set_level("INFO")
    embed(config, workspace, CPU)
    assert "embed: train: 8 patches, 2 view(s) each; 3 patches to do" in caplog.text
    for path in folder.glob("shard_*.npy"):
        assert path.read_bytes() == whole[path.name][0]
        assert (path.stat().st_mtime_ns == whole[path.name][1]) == (path != shard)
    open_embeddings(config, workspace, CPU, _sam(config), "train")


def test_a_damaged_store_record_is_named_and_embed_makes_the_store_anew(stored):
    workspace, config = stored
    path, sam = workspace.embeddings("train") / "store.json", _sam(config)
    text = path.read_text()
    for damaged in (
        "",
        "[1]",
        "[" * 99_999,
        text.replace('"views": 2', '"views": "2"'),
        text.replace('"views": 2', '"views": 0'),
        text.replace('"shape": [', '"shape": [1,'),
        text.replace('"shards": {', '"shards": {"../x": "1",'),
        text.replace('"format"', '"form"'),
    ):
        assert damaged != text
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"store.json: is not the record .*--from embed"):
            open_embeddings(config, workspace, CPU, sam, "train")
    note = path.with_name("notes_of_somebody.txt")
    note.write_text("kept")
    embed(config, workspace, CPU)
    assert note.read_text() == "kept"
    open_embeddings(config, workspace, CPU, sam, "train")
