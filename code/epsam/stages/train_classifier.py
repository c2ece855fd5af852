"""Stage train-classifier: patches and their labels -> ResNet with ADL (method.md, section 1)."""

import torch

from epsam.classifier.backbone import Backbone
from epsam.classifier.batchnorm import recalibrate_batchnorm
from epsam.classifier.building import build_classifier, load_classifier
from epsam.classifier.pretrained import initialise
from epsam.classifier.shared_batchnorm import share_batchnorm
from epsam.classifier.train_step import LabelLoss, TrainStep
from epsam.classifier.training import (
    figures,
    load_labelled,
    parameter_groups,
    positive_weight,
    predict_logits,
    train_epoch,
)
from epsam.classifier.validation import map_error
from epsam.config.paths import settings_for_weights
from epsam.config.schema import Config
from epsam.evaluation.metrics import auc
from epsam.models.initial import initial_model
from epsam.patches.resolution import patch_mpp
from epsam.results import record_results
from epsam.runtime.checkpoints import load_tensors, save_weights
from epsam.runtime.device import Hardware
from epsam.runtime.log import logger
from epsam.runtime.memory import peak_memory_mib
from epsam.runtime.seeds import seed_of
from epsam.runtime.training_loop import run
from epsam.visualization.charts import draw_curves
from epsam.workspace import SPLITS, Workspace


def _first_model(config: Config, workspace: Workspace) -> Backbone:
    """The classifier before its first step: of `init_from`, or as `classifier.init` says."""
    initial = initial_model(config, workspace)
    if initial and initial.classifier:
        logger.info(f"classifier: starts from {initial.classifier}")
        return load_classifier(config.classifier, initial.classifier)
    model = build_classifier(config.classifier)
    initialise(model, config.classifier.init, workspace.checkpoints)
    return model


def train_classifier(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: train on the labels of the train split, keep the best epoch (`select_on`), and measure it.

    Writes the weights, runs/<name>/classifier_curves.csv and .png, and results of val and test. Goes on from
    the last complete epoch after a stop, to the same result (on a GPU but for its rounding). Raises DataError
    for a split of one class or patches of unequal size, EpsamError when the loss is not finite.
    """
    settings, ranks = config.classifier, hardware.ranks
    train, val, test = (load_labelled(workspace, split, config.worker_count) for split in SPLITS)
    torch.manual_seed(seed_of(settings.seed, "classifier"))
    model = _first_model(config, workspace)
    model.to(hardware.device).to(memory_format=hardware.memory_format)
    model = share_batchnorm(model, hardware.ranks, hardware.device)
    optimiser = torch.optim.Adam(
        parameter_groups(model, settings), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_step, settings.lr_gamma)
    on_masks = settings.select_on == "val_masks"
    logger.info(
        f"classifier: the best epoch is chosen on the {'true masks' if on_masks else 'labels'} of the val split"
    )
    label_loss = LabelLoss(positive_weight(train, settings))
    learner = TrainStep(model, optimiser, label_loss, hardware, batch=settings.batch)
    learner.log(settings.batch)

    def run_epoch(epoch: int) -> dict[str, float]:
        loss = train_epoch(learner, train, config, epoch)
        schedule.step()
        recalibrate_batchnorm(
            model,
            train.images,
            settings,
            learner.hardware,
            epoch,
            config.worker_count,
            settings.bn_recalibration_batches,
            learner.micro_batch.size,
        )
        logits = predict_logits(model, val.images, learner.hardware, config.worker_count)
        val_loss = label_loss(logits, val.labels).item()
        figures = {"train_loss": loss, "val_loss": val_loss, "val_auc": auc(val.labels.numpy(), logits.numpy())}
        if on_masks:
            figures["val_map_error"] = ranks.decide(lambda: map_error(model, config, workspace, learner.hardware))
        return figures

    best, curves = workspace.state / "classifier_best.pth", workspace.run / "classifier_curves.csv"
    done = run(
        "classifier",
        run_epoch,
        {"model": model, "optimiser": optimiser, "schedule": schedule, "learner": learner},
        model.state_dict,
        epochs=settings.epochs,
        early_stop=settings.early_stop,
        state=workspace.state / "classifier.pth",
        best=best,
        curves=curves,
        score="val_map_error" if on_masks else "val_loss",
        ranks=ranks,
    )
    model.load_state_dict(ranks.decide(lambda: load_tensors(best)))
    logger.info(f"classifier: peak memory {peak_memory_mib(str(hardware.device)):.0f} MiB")
    rows = [
        {"split": split, "method": "classifier"} | figures(model, labelled, hardware, config.worker_count)
        for split, labelled in (("val", val), ("test", test))
    ]
    if ranks.is_first:
        draw_curves(curves.with_suffix(".png"), done)
        mpp = patch_mpp(workspace)
        save_weights(workspace.classifier, model.state_dict(), settings_for_weights(config, mpp), mpp=mpp)
        record_results(workspace, "train-classifier", rows)
