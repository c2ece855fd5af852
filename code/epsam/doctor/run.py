"""All checks of one run, in order."""

from epsam.config import Config
from epsam.doctor import Check
from epsam.doctor.data import check_slides, check_split, check_weights
from epsam.doctor.machine import check_disk, check_gpu, check_python, check_readers, check_torch
from epsam.workspace import Workspace


def examine(config: Config, workspace: Workspace) -> list[Check]:
    """Every check, none of them depending on another having gone well but the GPU's on torch's."""
    torch = check_torch()
    return [
        check_python(),
        torch,
        *([check_gpu(config)] if torch.status == "ok" else []),
        check_disk(config, workspace.root),
        check_readers(config),
        check_weights(config, workspace),
        check_slides(config, workspace),
        check_split(config, workspace),
    ]
