"""The decoder's training and its rounds: what is learned, from what, and when it stops with advice."""

import dataclasses
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.measure import label

from epsam.cam.activation_map import ActivationMap
from epsam.cam.store import load_cams, save_cams
from epsam.config.paths import settings_for_weights
from epsam.config.schema import Config, Postprocess, Retrain
from epsam.errors import DataError
from epsam.patches.patch import patches_for_sam
from epsam.pseudo_labels import ids_score, warn_of_drift
from epsam.round_choice import last_in_agreement
from epsam.rounds import read_rounds, used_round
from epsam.runtime.checkpoints import load_tensors, save_weights
from epsam.runtime.files import read_csv, read_image, read_mask, write_png
from epsam.sam.labels import validation_examples, with_labels
from epsam.sam.losses import dice_loss, iou_loss
from epsam.sam.postprocessing import components_touching, keep_components, without_small_regions
from epsam.sam.session import SamSession
from epsam.sam.training import train_decoder, train_supervised
from epsam.segmenter import segment_stored
from epsam.stages.embed import embed
from epsam.stages.finetune import finetune
from epsam.stages.retrain import retrain
from epsam.workspace import Workspace
from tests.sam_factory import CPU, SIZE, add_normal_patches, make_config, make_patches, predict_split

GOLDEN = np.load(Path(__file__).parent / "golden" / "reference.npz")


def _trained(root, **sections):
    workspace, config = make_patches(root), make_config(root, **sections)
    embed(config, workspace, CPU)
    finetune(config, workspace, CPU)
    return workspace, config


def _weights(workspace: Workspace, round_: int | str):
    return load_tensors(workspace.decoder(round_))


def _mean_dice(config, workspace, split, decoder):
    true = {patch.name: read_mask(patch.mask) for patch in patches_for_sam(workspace, split)}
    predicted = predict_split(config, workspace, CPU, split, decoder)
    assert predicted.keys() == true.keys()
    return np.mean([2 * (true[n] & predicted[n]).sum() / (true[n].sum() + predicted[n].sum()) for n in true])


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Rounds 0 and 1 and the supervised decoder, trained long enough to see a difference."""
    workspace, config = _trained(tmp_path_factory.mktemp("rounds"), finetune={"epochs": 8, "lr": 3e-3, "batch": 2})
    retrain(config, workspace, CPU)
    train_supervised(SamSession(config, workspace, CPU))
    return workspace, config


def test_losses_equal_the_golden_arrays():
    probability, target = (torch.from_numpy(GOLDEN[f"loss_{name}"]) for name in ("prediction", "target"))
    for loss, name in ((dice_loss, "dice"), (iou_loss, "iou")):
        assert loss(probability, target).item() == pytest.approx(GOLDEN[f"{name}_loss"].item(), abs=1e-4)
        hard = 1 - loss((probability > 0.5).float(), target)
        assert hard.item() == pytest.approx(GOLDEN[f"{name}_metric"].item(), abs=1e-4)


def test_training_finds_the_tumour(rounds):
    workspace, config = rounds
    untuned = _mean_dice(config, workspace, "test", None)
    for round_ in (0, 1, "supervised"):
        assert _mean_dice(config, workspace, "test", workspace.decoder(round_)) > untuned + 0.2
    supervised = _mean_dice(config, workspace, "test", workspace.decoder("supervised"))
    assert supervised > 0.75


def test_decoder_files_hold_the_decoder_and_what_it_was_trained_with(rounds):
    workspace, _ = rounds
    for round_ in (0, 1, "supervised"):
        assert all(name.startswith("mask_decoder.") for name in _weights(workspace, round_))
        assert workspace.decoder(round_).with_name(workspace.decoder(round_).name + ".json").is_file()


def test_a_round_leaves_curves_a_summary_and_a_contact_sheet(rounds):
    workspace, config = rounds
    for name in ("round0", "round1", "supervised"):
        dice = (
            "val_dice" if name == "supervised" else "val_pseudo_dice"
        )  # with pseudo masks it says nothing of the truth
        curves = read_csv(workspace.run / f"{name}_curves.csv", ["epoch", "train_loss", "val_loss", dice, "lr"])
        assert len(curves[0]) == 5
        rates = [float(row["lr"]) for row in curves]
        assert rates[0] == config.finetune.lr
        assert rates == sorted(rates, reverse=True)
        assert rates[4] == pytest.approx(config.finetune.lr / 2)  # cosine: half the rate in the middle of the 8 epochs
    (row,) = read_csv(
        workspace.run / "pseudo_labels.csv",
        ["round", "kept", "mean_ids", "cam_share", "sam_share", "kept_share", "sensitivity"],
    )
    kept = sorted(path.stem for path in workspace.pseudo_labels(1).glob("*.png"))
    assert (row["round"], row["patches"], int(row["kept"])) == ("1", "8", len(kept))
    shares = [read_mask(workspace.pseudo_labels(1) / f"{name}.png").mean() for name in kept]
    assert float(row["kept_share"]) == pytest.approx(np.mean(shares))
    assert 0 <= float(row["sensitivity"]) < 0.5
    for round_ in (0, 1):
        sheet = read_image(workspace.run / f"labels_round{round_}.png")
        assert sheet.shape[0] > 8 * 200
        assert sheet.std() > 20


def test_pseudo_labels_are_the_predictions_for_the_patches_as_they_are(rounds):
    workspace, config = rounds
    predicted = predict_split(config, workspace, CPU, "train", workspace.decoder(0))
    for path in workspace.pseudo_labels(1).glob("*.png"):
        np.testing.assert_array_equal(read_mask(path), predicted[path.stem])


def test_small_islands_go_and_small_holes_are_filled():
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:25] = True
    whole = mask.copy()
    mask[10:13, 10:13] = False  # a hole of 9 pixels
    mask[30, 30:39] = True  # an island of 9
    np.testing.assert_array_equal(without_small_regions(mask, 10), whole)
    np.testing.assert_array_equal(without_small_regions(mask, 9), mask)
    assert without_small_regions(mask & ~whole, 10).sum() == 9, "the only island stays, however small"
    assert not without_small_regions(np.zeros((40, 40), bool), 10).any()
    assert not without_small_regions(np.zeros((40, 40), bool), 2000).any(), "nothing becomes tumour all over"


def test_islands_that_the_cam_does_not_touch_go():
    mask, cam = np.zeros((2, 40, 40), bool)
    mask[2:10, 2:10] = mask[20:30, 20:30] = True
    cam[9:15, 9:15] = True  # a corner of the first
    kept = components_touching(mask, cam)
    np.testing.assert_array_equal(kept[:15, :15], mask[:15, :15])
    assert kept.sum() == 64
    assert not components_touching(mask, np.zeros_like(cam)).any()
    np.testing.assert_array_equal(keep_components(mask, cam, Postprocess()), mask, "as published, all stay")


def test_pseudo_labels_have_no_small_regions_when_these_are_set_to_go(rounds):
    workspace, config = rounds
    cleaned = config.model_copy(update={"postprocess": Postprocess(min_region_px=60)})
    decoded = predict_split(config, workspace, CPU, "train", None)
    masks = predict_split(cleaned, workspace, CPU, "train", None)
    assert any((masks[name] != mask).any() for name, mask in decoded.items())
    for mask in masks.values():
        sizes = sorted(np.bincount(label(mask, connectivity=2).ravel())[1:])
        assert all(size >= 60 for size in sizes[:-1])  # the largest island stays, however small


def test_predictions_do_not_depend_on_the_batch(rounds):
    workspace, config = rounds
    together = predict_split(config, workspace, CPU, "test", workspace.decoder(1))
    single = predict_split(config, workspace, replace(CPU, decoder_batch=1), "test", workspace.decoder(1))
    assert together.keys() == single.keys()
    for name, mask in together.items():
        assert mask.shape == SIZE
        assert (mask != single[name]).mean() < 1e-3


def test_a_training_starts_from_the_original_decoder_whatever_was_in_place(tmp_path):
    workspace, config = _trained(tmp_path, finetune={"epochs": 1})
    context = SamSession(config, workspace, CPU)
    train = with_labels(context.examples("train"), workspace.pseudo_labels(0))
    context.use_decoder(workspace.decoder(0))
    train_decoder(context, "again", train, validation_examples(context, 0), workspace.decoder(9))
    torch.testing.assert_close(_weights(workspace, 9), _weights(workspace, 0), rtol=0, atol=0)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    whole, _ = _trained(tmp_path / "whole")
    workspace, config = make_patches(tmp_path / "stopped"), make_config(tmp_path / "stopped")
    embed(config, workspace, CPU)
    schedule, steps = torch.optim.lr_scheduler.CosineAnnealingLR.step, []

    def stop_in_second_epoch(self, *args):
        steps.append(self)
        if len(steps) == 3:  # the first is taken when the schedule is made
            raise KeyboardInterrupt
        return schedule(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.lr_scheduler.CosineAnnealingLR, "step", stop_in_second_epoch)
        finetune(config, workspace, CPU)
    assert not workspace.decoder(0).exists()
    finetune(config, workspace, CPU)
    assert len(read_csv(workspace.run / "round0_curves.csv", ["epoch"])) == 3
    assert load_tensors(workspace.state / "round0.pth")["parts"]["optimizer"]["param_groups"][0]["fused"]
    torch.testing.assert_close(_weights(workspace, 0), _weights(whole, 0), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("first", "then", "expected", "message"),
    [
        ("float32", "bfloat16", "float32", "round0: going on in float32, as before the stop"),
        ("bfloat16", "float32", "float32", "round0: was trained in bfloat16 so far and goes on in float32"),
    ],
)
def test_a_training_goes_on_in_the_precision_it_began_in_or_says_so(tmp_path, caplog, first, then, expected, message):
    caplog.set_level("INFO", logger="epsam")
    workspace = make_patches(tmp_path)
    for epochs, precision in enumerate((first, then), 1):
        config = make_config(tmp_path, sam={"embeddings": "off"}, finetune={"epochs": epochs})
        finetune(config, workspace, dataclasses.replace(CPU, precision=getattr(torch, precision)))
    assert message in caplog.text
    assert load_tensors(workspace.state / "round0.pth")["parts"]["trainer"] == {"precision": expected}


def test_without_a_store_the_same_decoder_comes_out(tmp_path):
    kept, _ = _trained(tmp_path / "on")
    anew, config = _trained(tmp_path / "off", sam={"embeddings": "off"})
    assert not anew.embeddings("train").exists()
    losses = [
        [float(row["val_loss"]) for row in read_csv(w.run / "round0_curves.csv", ["val_loss"])] for w in (kept, anew)
    ]
    np.testing.assert_allclose(*losses, atol=5e-3)
    masks = [
        predict_split(c, w, CPU, "test", w.decoder(0)) for w, c in ((kept, make_config(kept.root)), (anew, config))
    ]
    assert np.mean([(masks[0][name] == masks[1][name]).mean() for name in masks[0]]) > 0.99


def _share_marked_of_normal_patches(workspace: Workspace, config: Config) -> float:
    session = SamSession(config, workspace, CPU)
    session.use_decoder(workspace.decoder(0))
    return float(np.mean([mask for _, mask in segment_stored(session, "val", session.normal_examples("val"))]))


def test_normal_patches_are_learned_to_be_left_empty(tmp_path, caplog):
    """As published no decoder sees normal tissue: it marks what a wrong map points at."""
    caplog.set_level(logging.INFO)
    marked = {}
    for weight in (0.0, 0.5):
        workspace = make_patches(tmp_path / str(weight))
        add_normal_patches(workspace, {"train": 12, "val": 2})
        settings = {"epochs": 8, "normal_weight": weight}
        config = make_config(tmp_path / str(weight), sam={"embeddings": "off"}, finetune=settings)
        finetune(config, workspace, CPU)
        if not weight:
            assert "round0: 8 training patches, 3 validation patches" in caplog.text
            config = config.model_copy(update={"finetune": config.finetune.model_copy(update={"normal_weight": 1.0})})
        marked[weight] = _share_marked_of_normal_patches(workspace, config)
    assert "round0: 8 + 8 normal training patches, 3 + 2 normal validation patches" in caplog.text
    assert marked[0.0] > 0.02
    assert marked[0.5] < 0.25 * marked[0.0]
    assert _mean_dice(config, workspace, "test", workspace.decoder(0)) > 0.6


def test_normal_patches_are_encoded_and_have_maps_where_the_decoder_learns_them(tmp_path):
    workspace, config = make_patches(tmp_path), make_config(tmp_path, finetune={"epochs": 1, "normal_weight": 0.5})
    names = add_normal_patches(workspace, {"train": 2, "val": 1})
    embed(config, workspace, CPU)
    session = SamSession(config, workspace, CPU)
    assert sorted(e.patch.name for split in ("train", "val", "test") for e in session.normal_examples(split)) == sorted(
        names
    )
    stored, anew = (
        session.embeddings("train"),
        make_config(tmp_path, sam={"embeddings": "off"}, finetune={"normal_weight": 0.5}),
    )
    encoded = SamSession(anew, workspace, CPU).embeddings("train")
    for example in [*session.examples("train"), *session.normal_examples("train")]:
        items = [one.batch([one.item(example.position, 1)]) for one in (stored, encoded)]
        torch.testing.assert_close(*items, rtol=0, atol=0)


def test_patches_of_several_sizes_train_together(tmp_path):
    workspace = make_patches(tmp_path, sizes=(SIZE, (64, 64), (300, 200)))
    config = make_config(tmp_path, sam={"embeddings": "off", "views": 8}, finetune={"epochs": 1})
    finetune(config, workspace, CPU)
    for name, mask in predict_split(config, workspace, CPU, "test", workspace.decoder(0)).items():
        assert mask.shape == read_image(workspace.split("test") / "image" / f"{name}.png").shape[:2]


def test_select_on_true_masks_is_said_and_needs_them(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    workspace, _ = _trained(tmp_path, finetune={"select_on": "val_masks", "epochs": 1})
    assert "chosen by true masks of the val split" in caplog.text
    caplog.clear()
    finetune(make_config(tmp_path, finetune={"epochs": 1}), workspace, CPU)
    assert "chosen by pseudo masks of the val split" in caplog.text
    for path in (workspace.split("val") / "mask").glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"val: no mask/ to choose by; set finetune.select_on=pseudo"):
        finetune(make_config(tmp_path, finetune={"select_on": "val_masks"}), workspace, CPU)


def test_empty_initial_masks_stop_with_advice(tmp_path, caplog):
    workspace, config = make_patches(tmp_path), make_config(tmp_path, finetune={"epochs": 1})
    embed(config, workspace, CPU)
    masks = sorted(workspace.pseudo_labels(0).glob("*.png"))
    write_png(masks[0], np.zeros(SIZE, bool))
    finetune(config, workspace, CPU)
    assert "1 of 8 masks are empty and are left out" in caplog.text
    for path in masks:
        write_png(path, np.zeros(SIZE, bool))
    with pytest.raises(DataError, match=r"initial_mask: all 8 masks are empty.*lower cam.percentile, cam.threshold"):
        finetune(config, workspace, CPU)
    masks[3].unlink()
    with pytest.raises(DataError, match=r"is missing \(1 of 8 masks\); initial masks are made by"):
        finetune(config, workspace, CPU)


def test_a_mask_of_another_size_is_refused(tmp_path):
    workspace, config = make_patches(tmp_path), make_config(tmp_path, sam={"embeddings": "off"})
    write_png(next(workspace.pseudo_labels(0).glob("*.png")), np.ones((50, 60), bool))
    with pytest.raises(DataError, match=r"is 60 x 50 px, its patch 128 x 96"):
        finetune(config, workspace, CPU)


def test_a_round_that_keeps_nothing_stops_with_advice(tmp_path):
    workspace, config = _trained(tmp_path, finetune={"epochs": 1}, retrain={"ids": 1.0})
    with pytest.raises(DataError, match="round 1 keeps none of 8 pseudo-labels: the best IDS is") as refused:
        retrain(config, workspace, CPU)
    assert not list(workspace.pseudo_labels(1).glob("*.png"))
    assert (workspace.run / "labels_round1.png").is_file()
    advised = float(re.search(r"--from retrain retrain\.ids=([0-9.]+)\. ", str(refused.value)).group(1))
    retrain(config.model_copy(update={"retrain": Retrain(rounds=1, ids=advised)}), workspace, CPU)
    assert list(workspace.pseudo_labels(1).glob("*.png"))


def test_a_small_learning_rate_is_logged_with_its_digits(tmp_path, caplog):
    with caplog.at_level("INFO", logger="epsam"):
        _trained(tmp_path, finetune={"epochs": 1, "lr": 5e-6})
    assert any("lr=5e-06" in line for line in caplog.messages)


def test_retraining_goes_on_after_the_last_finished_round(tmp_path):
    workspace, config = _trained(tmp_path, finetune={"epochs": 1}, retrain={"rounds": 2, "ids": 0.0})
    retrain(config, workspace, CPU)
    times = {n: workspace.decoder(n).stat().st_mtime_ns for n in (1, 2)}
    second = _weights(workspace, 2)
    workspace.decoder(2).unlink()
    retrain(config, workspace, CPU)
    assert workspace.decoder(1).stat().st_mtime_ns == times[1]
    torch.testing.assert_close(_weights(workspace, 2), second, rtol=0, atol=0)
    assert [row["round"] for row in read_csv(workspace.run / "pseudo_labels.csv", ["round"])] == ["1", "2"]


@pytest.mark.parametrize(
    ("agreements", "used"),
    [([0.9, 0.91, 0.92], 2), ([0.9, 0.895, 0.891], 2), ([0.9, 0.88, 0.95], 0), ([0.9, 0.9, 0.85, 0.85], 1), ([0.7], 0)],
)
def test_rounds_count_until_one_leaves_the_cam_masks(agreements, used):
    assert last_in_agreement(agreements) == used


@pytest.mark.parametrize(("use", "used"), [("last", 2), ("agreement", 0)])
def test_a_round_that_leaves_the_cam_masks_is_used_only_as_the_last(tmp_path, caplog, use, used):
    caplog.set_level(logging.INFO)
    workspace, config = _trained(tmp_path, finetune={"epochs": 1}, retrain={"rounds": 2, "ids": 0.0, "use": use})
    retrain(config, workspace, CPU)
    for round_ in (1, 2):  # a decoder of zeros marks nothing
        zeros = {name: 0 * tensor for name, tensor in _weights(workspace, round_).items()}
        save_weights(workspace.decoder(round_), zeros, settings_for_weights(config, None))
    retrain(config, workspace, CPU)
    assert used_round(workspace) == used
    for name, tensor in load_tensors(workspace.decoder(used)).items():
        assert torch.equal(load_tensors(workspace.used_decoder)[name], tensor)
    assert f"rounds: round {used} is used (retrain.use is {use})" in caplog.text
    rows = read_rounds(workspace)
    assert rows[0].agreement > 0.3
    assert [row.agreement < 0.1 for row in rows] == [False, True, True]


def test_a_damaged_table_of_rounds_says_how_to_make_it_again(tmp_path):
    workspace = make_patches(tmp_path)
    for table in (
        "round,agreement,used\n0,0.9,0\n",
        "round,agreement,used\n../../1,0.9,1\n",
        "round,agreement,used\n0,nan,1\n",
    ):
        workspace.rounds_csv.write_text(table)
        with pytest.raises(DataError, match=r"rounds\.csv.*run \./train\.sh again with --from retrain"):
            used_round(workspace)


def test_a_patch_without_prompts_is_predicted_empty_and_reported(tmp_path, caplog):
    workspace, config = make_patches(tmp_path), make_config(tmp_path, sam={"embeddings": "off"})
    cams = load_cams(workspace.cams("test"))
    blank = list(cams)[1]
    save_cams(workspace.cams("test"), cams | {blank: ActivationMap(np.zeros_like(cams[blank].values), 0.5)})
    masks = predict_split(config, workspace, CPU, "test", None)
    assert list(masks) == list(cams)
    assert not masks[blank].any()
    text = caplog.text
    assert f"test: 1 patches have no prompt, as their CAM mask is empty, and are predicted empty: {blank}" in text


def test_a_patch_without_a_map_is_named(tmp_path):
    workspace, config = make_patches(tmp_path), make_config(tmp_path, sam={"embeddings": "off"})
    cams = load_cams(workspace.cams("test"))
    missing = list(cams)[2]
    save_cams(workspace.cams("test"), {name: cam for name, cam in cams.items() if name != missing})
    with pytest.raises(DataError, match=rf"no CAM of {missing} \(1 of 3 patches\); run the stage initial-masks"):
        predict_split(config, workspace, CPU, "test", None)


def test_ids_is_the_share_of_sam_inside_the_cam():
    cam, sam = np.zeros((2, 10, 10), bool)
    cam[:, :5], sam[:2] = True, True
    assert ids_score(cam, sam) == pytest.approx(10 / 21)
    assert ids_score(cam, np.zeros_like(sam)) == 0


def test_masks_that_shrink_or_grow_are_warned_of(caplog):
    warn_of_drift(1.0, 0.9, 2)
    assert not caplog.records
    warn_of_drift(1.0, 0.7, 2)
    warn_of_drift(0.7, 1.1, 3)
    assert "round 2: SAM's masks shrink, from 1.00 to 0.70" in caplog.text
    assert "round 3: SAM's masks grow, from 0.70 to 1.10" in caplog.text
