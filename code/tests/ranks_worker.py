"""What the processes of test_ranks.py do, started by torchrun: `python ranks_worker.py WHAT FOLDER ...`.

`share FOLDER --again OTHER STAGE...`: 8 steps of a classifier in float64, into FOLDER/steps.pth; the classifier's training
of the run OTHER/small.yaml, continued; stages of the run FOLDER/small.yaml.
`fail FOLDER NUMBER`: process NUMBER has an error while the others wait for it.
`memory FOLDER NUMBER`: the same in the middle of a step, where the GPU of process NUMBER is full.
`killed ...`: what `epsam ...` does; the last process is killed in the second epoch of the classifier's training.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from epsam.cli import cli, main
from epsam.config.loading import load_config
from epsam.errors import EpsamError
from epsam.pipeline import STAGES
from epsam.runs.runner import run_stage
from epsam.runs.stage import find_stage
from epsam.runtime.log import set_up_logging
from epsam.runtime.ranks import ALONE, Ranks, end_shared_process, join
from epsam.workspace import Workspace

# PyTorch and what needs it is imported where it is used: the process that fails does without most of it.

BATCHES = (5, 5, 5, 3, 5, 5, 5, 1)
"""Patches of each step; micro-batches are of 4, so those of 5 are a part of 3 and one of 2."""


def run_stages(folder: Path, names: Sequence[str], ranks: Ranks = ALONE) -> None:
    """Stages of the run FOLDER/small.yaml."""
    config, workspace = load_config(folder / "small.yaml"), Workspace(folder, "small")
    for name in names:
        run_stage(STAGES, find_stage(STAGES, name), config, workspace, ranks)


def train_steps(folder: Path, ranks: Ranks = ALONE, full: int | None = None) -> None:
    """Write FOLDER/steps.pth: losses and weights of a classifier in float64. Process `full` has no memory left for layer4."""
    import torch

    from epsam.classifier.building import build_classifier
    from epsam.classifier.shared_batchnorm import share_batchnorm
    from epsam.classifier.train_step import LabelLoss, TrainStep
    from epsam.config.schema import Classifier
    from epsam.runtime import device
    from epsam.runtime.checkpoints import save_tensors

    hardware = dataclasses.replace(device.choose_hardware("cpu", ranks), classifier_batch=4 if ranks.count == 1 else 2)
    torch.manual_seed(0)
    model = build_classifier(Classifier(depth=18)).double()
    model = share_batchnorm(model, ranks, hardware.device).train()
    model.seed_adl("ranks")
    if ranks.index == full:
        model.layer4.register_forward_pre_hook(_have_no_memory)
    loss = LabelLoss(torch.tensor(3.0, dtype=torch.float64))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    learner = TrainStep(model, optimiser, lambda logits, labels: loss(logits.double(), labels), hardware)
    learner.micro_batch.size = 4
    images = torch.rand(sum(BATCHES), 3, 32, 32, dtype=torch.float64)
    labels = (torch.arange(len(images)) % 2).double()
    losses, start = [], 0
    for count in BATCHES:
        share = learner.share(list(range(start, start + count)))
        losses.append(learner.step(images[share.indices], labels[share.indices], share))
        start += count
    if ranks.is_first:
        save_tensors(folder / "steps.pth", {"losses": torch.tensor(losses, dtype=torch.float64), **model.state_dict()})


@click.command("share")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--again", type=click.Path(path_type=Path))
@click.argument("stages", nargs=-1)
def share_stages(folder: Path, again: Path, stages: tuple[str, ...]) -> None:
    with join() as ranks:
        set_up_logging(folder / "log.txt", errors_only=not ranks.is_first)
        train_steps(folder, ranks)
        run_stages(again, ["train-classifier"], ranks)
        run_stages(folder, stages, ranks)
    end_shared_process()  # as the commands of the stages do


@click.command("fail")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("number", type=int)
def fail(folder: Path, number: int) -> None:
    with join() as ranks:
        set_up_logging(folder / "log.txt", errors_only=not ranks.is_first)
        ranks.wait()
        if ranks.index == number:
            raise EpsamError("the disk is on fire; put it out")
        ranks.wait()


@click.command("memory")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("number", type=int)
def run_out_of_memory(folder: Path, number: int) -> None:
    with join() as ranks:
        set_up_logging(folder / "log.txt", errors_only=not ranks.is_first)
        train_steps(folder, ranks, full=number)


def _have_no_memory(*_: object) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory.")


def be_killed() -> None:
    """Have the last process end by SIGKILL when the second epoch of the classifier has made its steps."""
    from epsam.stages import train_classifier

    train_epoch = train_classifier.train_epoch

    def until_the_second(learner: Any, train: Any, config: Any, epoch: int) -> float:
        loss = train_epoch(learner, train, config, epoch)  # all take part: the first has written the state before
        if epoch == 2 and learner.hardware.ranks.index == learner.hardware.ranks.count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    train_classifier.train_epoch = until_the_second


if __name__ == "__main__":
    if sys.argv[1] not in ("fail", "memory"):
        from epsam.runtime import device

        device._cpu_computes_bfloat16 = lambda: False  # the same figures on every machine
    if sys.argv[1] == "killed":
        be_killed()
        del sys.argv[1]
    cli.add_command(share_stages)
    cli.add_command(fail)
    cli.add_command(run_out_of_memory)
    main()
