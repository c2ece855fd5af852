"""The method, stage by stage, in the order of ./train.sh. Start reading here.

    slides -> preprocess -> patches -> train-classifier -> ResNet with ADL -> initial-masks -> maps, masks
                            patches -> embed -> SAM's embeddings
    embeddings, maps, masks -> finetune -> round 0 -> retrain -> rounds 1 to N -> distill -> student
                                                rounds, student -> evaluate -> report

A stage is imported when it runs, so that one that is done is reported as done without loading PyTorch.
"""

from typing import Any

from epsam.config.schema import Config
from epsam.runs.stage import Stage
from epsam.workspace import Workspace


def _preprocess(config: Config, workspace: Workspace, _: Any) -> None:
    from epsam.stages.preprocess import preprocess

    preprocess(config, workspace)


def _train_classifier(config: Config, workspace: Workspace, hardware: Any) -> None:
    from epsam.stages.train_classifier import train_classifier

    train_classifier(config, workspace, hardware)


def _embed(config: Config, workspace: Workspace, hardware: Any) -> None:
    from epsam.stages.embed import embed

    embed(config, workspace, hardware)


def _initial_masks(config: Config, workspace: Workspace, hardware: Any) -> None:
    from epsam.stages.initial_masks import make_initial_masks

    make_initial_masks(config, workspace, hardware)


def _finetune(config: Config, workspace: Workspace, hardware: Any) -> None:
    from epsam.stages.finetune import finetune

    finetune(config, workspace, hardware)


def _retrain(config: Config, workspace: Workspace, hardware: Any) -> None:
    from epsam.stages.retrain import retrain

    retrain(config, workspace, hardware)


def _distill(config: Config, workspace: Workspace, hardware: Any) -> None:
    from epsam.stages.distill import distill

    distill(config, workspace, hardware)


def _evaluate(config: Config, workspace: Workspace, hardware: Any) -> None:
    from epsam.stages.evaluate import evaluate

    evaluate(config, workspace, hardware)


def _report(config: Config, workspace: Workspace, _: Any) -> None:
    from epsam.stages.report import report

    report(config, workspace, [(stage.name, stage.does) for stage in STAGES])


def _difference_from_cpu(hardware: Any) -> float:
    from epsam.self_test import difference_from_cpu

    return difference_from_cpu(hardware)


PREPROCESS = Stage(
    "preprocess",
    "cut patches from the slides",
    _preprocess,
    settings=("slides", "patches", "classifier.positive_share"),
    outputs=("dataset/{name}/{split}/image",),
    files=("dataset/{name}/patches.csv", "dataset/{name}/{split}/image/*", "dataset/{name}/{split}/mask/*"),
    needs_device=False,
)
TRAIN_CLASSIFIER = Stage(
    "train-classifier",
    "learn the patch labels",
    _train_classifier,
    needs=(PREPROCESS,),
    settings=("classifier", "init_from"),
    outputs=("checkpoints/{name}_resnet_adl.pth",),
    files=(
        "checkpoints/{name}_resnet_adl.pth",
        "runs/{name}/classifier_curves.csv",
        "runs/{name}/state/train-classifier.results.json",
    ),
    temporary=("state/classifier*.pth",),
)
EMBED = Stage(
    "embed",
    "run SAM's image encoder once over all patches",
    _embed,
    needs=(PREPROCESS,),
    settings=("sam", "postprocess.views", "finetune.normal_weight"),
    outputs=("runs/{name}/embeddings/{split}/store.json",),
    files=("runs/{name}/embeddings/*/shard_*.npy",),
    repairs_files=True,
    self_test=_difference_from_cpu,
    skipped_when=("sam.embeddings", "off"),
)
INITIAL_MASKS = Stage(
    "initial-masks",
    "class activation maps and the masks cut from them",
    _initial_masks,
    needs=(TRAIN_CLASSIFIER,),
    settings=("cam", "finetune.normal_weight"),
    outputs=("runs/{name}/cams/{split}.npz", "dataset/{name}/train/initial_mask"),
    files=("runs/{name}/cams/*.npz", "dataset/{name}/train/initial_mask/*.png"),
    resumes_from=("cams/*",),
    self_test=_difference_from_cpu,
)
FINETUNE = Stage(
    "finetune",
    "round 0: SAM's decoder on the initial masks",
    _finetune,
    needs=(EMBED, INITIAL_MASKS),
    settings=("prompts", "finetune"),
    outputs=("checkpoints/{name}_sam_pre_decoder.pth",),
    files=(
        "checkpoints/{name}_sam_pre_decoder.pth",
        "runs/{name}/round0_curves.csv",
        "dataset/{name}/val/initial_mask/*.png",
    ),
    temporary=("state/round0*",),
)
RETRAIN = Stage(
    "retrain",
    "rounds 1 to N: pseudo-labels, then the decoder from its original weights",
    _retrain,
    needs=(FINETUNE,),
    settings=("retrain", "postprocess"),
    outputs=(
        "checkpoints/{name}_decoder_iter{round}.pth",
        "checkpoints/{name}_sam_decoder.pth",
        "runs/{name}/rounds.csv",
    ),
    files=(
        "checkpoints/{name}_decoder_iter*.pth",
        "checkpoints/{name}_sam_decoder.pth",
        "runs/{name}/pseudo_labels.csv",
        "runs/{name}/rounds.csv",
        "runs/{name}/round[1-9]*_curves.csv",
        "dataset/{name}/{split}/iter_*/*.png",
    ),
    temporary=("state/round[1-9]*",),
)
DISTILL = Stage(
    "distill",
    "the student: a segmentation network that learns what the last round predicts",
    _distill,
    needs=(RETRAIN,),
    settings=("student",),
    outputs=("checkpoints/{name}_student.pth",),
    files=(
        "checkpoints/{name}_student.pth",
        "runs/{name}/student_curves.csv",
        "dataset/{name}/{split}/distill/*.png",
    ),
    temporary=("state/student.pth", "state/student_best.pth"),
    skipped_when=("student.enabled", False),
)
EVALUATE = Stage(
    "evaluate",
    "the table on the test split",
    _evaluate,
    needs=(RETRAIN, DISTILL),
    settings=("evaluate", "inference"),
    outputs=("runs/{name}/metrics.csv",),
    files=(
        "checkpoints/{name}_decoder_supervised.pth",
        "checkpoints/{name}_student_supervised.pth",
        "runs/{name}/slide_metrics.csv",
        "runs/{name}/state/evaluate.results.json",
        "runs/{name}/state/predictions/*.csv",
        "runs/{name}/state/predictions/*/*.png",
    ),
    resumes_from=("state/predictions*",),
    temporary=("state/supervised*", "state/student_supervised*"),
    uses_true_masks=True,
)
REPORT = Stage(
    "report",
    "one page to look at",
    _report,
    needs=(EVALUATE,),
    outputs=("runs/{name}/report.html",),
    uses_true_masks=True,
)

STAGES = (PREPROCESS, TRAIN_CLASSIFIER, EMBED, INITIAL_MASKS, FINETUNE, RETRAIN, DISTILL, EVALUATE, REPORT)
