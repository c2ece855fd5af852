"""What each process of test_ranks.py does; started by torchrun, and in one process for the comparison.

`python ranks_worker.py FOLDER`: train a small classifier in float64 for 8 steps and write what came of it.
"""

import dataclasses
import sys
from pathlib import Path

import torch

from epsam.classifier.building import build_classifier
from epsam.classifier.shared_batchnorm import share_batchnorm
from epsam.classifier.train_step import LabelLoss, TrainStep
from epsam.config.schema import Classifier
from epsam.runtime.checkpoints import save_tensors
from epsam.runtime.device import choose_hardware
from epsam.runtime.ranks import join

BATCHES = (5, 5, 5, 3, 5, 5, 5, 1)
"""Patches of each step; micro-batches are of 4."""


def main(folder: Path) -> None:
    with join() as ranks:
        hardware = dataclasses.replace(
            choose_hardware("cpu", ranks), precision=torch.float32, classifier_batch=4 if ranks.count == 1 else 2
        )
        torch.manual_seed(0)
        model = build_classifier(Classifier(depth=18, layer3_stride=1)).double()
        model = share_batchnorm(model, ranks, hardware.device).train()
        model.seed_adl("ranks")
        loss = LabelLoss(torch.tensor(3.0, dtype=torch.float64))
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        learner = TrainStep(model, optimiser, lambda logits, labels: loss(logits.double(), labels), hardware, batch=5)
        learner.micro_batch.size = 4
        images = torch.rand(sum(BATCHES), 3, 32, 32, dtype=torch.float64)
        labels = (torch.arange(len(images)) % 2).double()
        losses, start = [], 0
        for count in BATCHES:
            share = learner.share(list(range(start, start + count)))
            losses.append(learner.step(images[share.indices], labels[share.indices], share))
            start += count
        if ranks.is_first:
            state = {"losses": torch.tensor(losses, dtype=torch.float64), **model.state_dict()}
            save_tensors(folder / f"{ranks.count}.pth", state)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
