"""How much disk and computing a run will take, from its settings alone: upper estimates, as bins may hold less."""

from collections.abc import Iterable
from pathlib import Path

from epsam.config.schema import Config, Selection
from epsam.runs.record import read_state
from epsam.workspace import SPLITS, Workspace

PNG_BYTES_PER_PX = 3.1
"""Patches are kept without compression; their masks are small."""
EMBEDDING_BYTES = 256 * 64 * 64 * 2
"""fp16, the same for SAM's three sizes; the demo's is a sixteenth at most."""
SHARD_BYTES = 128 * 2**20
"""Of a file of embeddings, see sam/store.py."""
MILLION_WEIGHTS = {18: 11.2, 34: 21.3, 50: 23.5, "efficientnet_lite0": 3.4}
DECODER_MILLION_WEIGHTS = 4.1
FLOP_PER_PX = {18: 0.12e6, 34: 0.22e6, 50: 0.25e6, "efficientnet_lite0": 0.03e6}
"""Of one forward pass of the classifier with layer3_stride 2; three times as many with 1."""
STUDENT_SHARE = 1.4
"""FLOP of the student's network by those of the classifier that is its trunk."""
ENCODER_FLOP = {"vit_b": 0.97e12, "vit_l": 2.99e12, "vit_h": 5.95e12, "demo": 0.01e12}
DECODER_FLOP = 0.0044e12
"""Of one forward pass with SAM's 64 x 64 positions."""


def stage_bytes(config: Config, views: int) -> dict[str, int]:
    """Bytes that the stages write: patches, weights and training states, embeddings of so many views."""
    patches = sum(_positives(config, split) + _others(config, split) for split in SPLITS)
    of_sam = {split: _for_sam(config, split) for split in SPLITS}
    encoded = of_sam["train"] * views + (of_sam["val"] + of_sam["test"]) * min(views, config.postprocess.views)
    embedding = EMBEDDING_BYTES // 16 if config.sam.model_type == "demo" else EMBEDDING_BYTES
    # A training state holds weights and two moments of each; the best ones and the result are kept beside it.
    return {
        "preprocess": round(patches * config.patches.size_px**2 * PNG_BYTES_PER_PX),
        "train-classifier": round(5 * 4e6 * MILLION_WEIGHTS[_network(config)]),
        "distill": round(5 * 4e6 * MILLION_WEIGHTS[_network(config)]) if config.student.enabled else 0,
        "embed": encoded * embedding if config.sam.embeddings == "on" else 0,
        "retrain": round(4e6 * DECODER_MILLION_WEIGHTS * 5 * (config.retrain.rounds + 1)),
    }


def open_shards(config: Config) -> int:
    """Files of embeddings that a training has open at once."""
    return -(-stage_bytes(config, config.sam.views)["embed"] // SHARD_BYTES)


def bytes_still_needed(config: Config, workspace: Workspace, views: int) -> dict[str, int]:
    """The same without stages that are done and without patches and embeddings that are there."""
    there = {
        "preprocess": [workspace.split(split) for split in SPLITS],
        "embed": [workspace.embeddings(split) for split in SPLITS],
    }
    needed = {}
    for stage, count in stage_bytes(config, views).items():
        record = read_state(workspace.state, stage)
        needed[stage] = 0 if record and record["done"] else max(0, count - _bytes_below(there.get(stage, [])))
    return needed


def _bytes_below(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def flop(config: Config) -> float:
    """Floating-point operations of the whole run: training takes three times a forward pass."""
    train, val, test = (_positives(config, split) + _others(config, split) for split in SPLITS)
    stride = 3 if config.classifier.layer3_stride == 1 else 1
    classified = config.patches.size_px**2 * FLOP_PER_PX[_network(config)] * stride
    of_sam = {split: _for_sam(config, split) for split in SPLITS}
    views = of_sam["train"] * config.sam.views + config.postprocess.views * (of_sam["val"] + of_sam["test"])
    epochs = config.finetune.epochs * (config.retrain.rounds + 1)
    again = epochs if config.sam.embeddings == "off" else 1
    students = (1 + config.evaluate.supervised) * config.student.enabled
    decoded = DECODER_FLOP / 16 if config.sam.model_type == "demo" else DECODER_FLOP
    return (
        classified * (config.classifier.epochs * (3 * train + val) + 4 * sum(of_sam.values()) + test)
        + classified * STUDENT_SHARE * config.student.epochs * students * (3 * train + val)
        + ENCODER_FLOP[config.sam.model_type] * views * again
        + decoded * epochs * (3 * of_sam["train"] + of_sam["val"])
    )


def _network(config: Config) -> int | str:
    classifier = config.classifier
    return classifier.depth if classifier.backbone == "resnet" else classifier.backbone


def _positives(config: Config, split: str) -> int:
    """Positive patches, without those for the classifier alone."""
    selection: Selection = getattr(config.patches, split)
    if selection.at_random is not None:
        return selection.at_random
    low, high = config.patches.positive_share
    return max(round((high - low) / config.patches.bin_width) * (selection.per_bin or 0), selection.top_up or 0)


def _for_sam(config: Config, split: str) -> int:
    """Patches that SAM works on: positive ones, and normal ones that its decoder learns."""
    positives = _positives(config, split)
    learned = config.finetune.normal_weight > 0 and split != "test"
    return positives + (min(positives, getattr(config.patches, split).negatives) if learned else 0)


def _others(config: Config, split: str) -> int:
    selection: Selection = getattr(config.patches, split)
    return selection.negatives + selection.classifier_extra
