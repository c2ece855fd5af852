"""All checks of one run, in order."""

from pathlib import Path

from epsam.config import Config
from epsam.doctor import Check
from epsam.doctor.data import check_sam, check_slides, check_split, check_weights
from epsam.doctor.estimate import bytes_below, flop, patch_bytes, run_bytes
from epsam.doctor.machine import check_disk, check_folders, check_gpu, check_python, check_readers, check_torch
from epsam.workspace import SPLITS, Workspace


def examine(config: Config, workspace: Workspace) -> list[Check]:
    """Every check of a training; what lies there already needs no more room."""
    there = {workspace.dataset: bytes_below(*(workspace.split(split) for split in SPLITS)),
             workspace.run: bytes_below(workspace.run)}
    most, least = ({workspace.dataset: patch_bytes(config), workspace.run: run_bytes(config, views)}
                   for views in (config.sam.views, 1))
    return [
        *_machine(config, flop(config)),
        check_folders(workspace.dataset, workspace.checkpoints, workspace.run),
        check_disk(*({folder: max(0, needed[folder] - there[folder]) for folder in needed} for needed in (most, least))),
        check_weights(config, workspace.checkpoints),
        check_slides(config, workspace),
        check_split(config, workspace),
    ]


def examine_for_inference(config: Config, weights: Path, output: Path) -> list[Check]:
    """Every check of a prediction with trained checkpoints; `weights`: the folder of SAM's published ones."""
    return [*_machine(config, 0), check_folders(output), check_sam(config, weights)]


def _machine(config: Config, work: float) -> list[Check]:
    torch = check_torch()
    gpu = [check_gpu(config, work)] if torch.status == "ok" else []
    return [check_python(), torch, *gpu, check_readers(config)]
