"""All checks of one run, in order."""

from pathlib import Path

from epsam.config.paths import counted_from
from epsam.config.schema import Config
from epsam.doctor import Check
from epsam.doctor.data import check_initial, check_sam, check_slides, check_split, check_weights
from epsam.doctor.estimate import bytes_still_needed, flop, open_shards, stage_bytes
from epsam.doctor.machine import (
    check_disk,
    check_folders,
    check_gpu,
    check_lock,
    check_program,
    check_python,
    check_readers,
    check_torch,
    check_torch_unused,
    gpu_count,
)
from epsam.doctor.resources import check_memory, check_open_files, check_shared_memory
from epsam.errors import DataError
from epsam.pipeline import STAGES
from epsam.runs.record import read_state
from epsam.workspace import Workspace


def examine(config: Config, workspace: Workspace) -> list[Check]:
    """All checks of a training; files that are there already need no more room."""
    with_torch = not _is_done(workspace)
    return [
        *_machine(config, flop(config), workspace.root, with_torch=with_torch),
        check_folders(workspace.dataset, workspace.checkpoints, workspace.run),
        check_lock(workspace.run),
        check_disk(*(_by_folder(config, workspace, views) for views in (config.sam.views, 1))),
        check_memory(config.worker_count, stage_bytes(config, config.sam.views)["embed"]),
        check_shared_memory(gpu_count(config) if with_torch else 0),
        check_open_files(config.worker_count, open_shards(config)),
        check_weights(counted_from(config, workspace.root), workspace.checkpoints),
        *check_initial(config, workspace),
        check_slides(config, workspace),
        check_split(config, workspace),
    ]


def examine_for_inference(config: Config, weights: Path, output: Path, *, with_sam: bool) -> list[Check]:
    """All checks of a prediction with trained checkpoints; `weights`: the folder of SAM's published ones."""
    sam = [check_sam(config, weights)] if with_sam else []
    resources = [check_memory(1), check_shared_memory(1), check_open_files(1)]  # a process reads each slide
    return [*_machine(config, 0, weights.parent, with_torch=True), check_folders(output), *resources, *sam]


def _by_folder(config: Config, workspace: Workspace, views: int) -> dict[Path, int]:
    needed = bytes_still_needed(config, workspace, views)
    patches = needed.pop("preprocess")
    return {workspace.dataset: patches, workspace.run: sum(needed.values())}


def _is_done(workspace: Workspace) -> bool:
    """Whether every stage is recorded as done."""
    try:
        records = [read_state(workspace.state, stage.name) for stage in STAGES]
    except DataError:
        return False  # its stage reports it
    return all(record and record["done"] for record in records)


def _machine(config: Config, work: float, root: Path, *, with_torch: bool) -> list[Check]:
    computing = [check_torch_unused()]
    if with_torch:
        computing = [check_torch()]
        if computing[0].status == "ok":
            computing.append(check_gpu(config, work))
    return [check_python(), check_program(root), *computing, check_readers(config)]
