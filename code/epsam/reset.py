"""Forgetting stages, so that they run anew: ./train.sh --fresh and --from STAGE."""

import shutil

from epsam.config import Config
from epsam.pipeline import STAGES, clear, find_stage
from epsam.runtime.files import remove
from epsam.runtime.log import logger
from epsam.runtime.state import lock
from epsam.signature import has_files
from epsam.workspace import SPLITS, Workspace


def reset(config: Config, workspace: Workspace, first: str) -> None:
    """Forget stage `first` and all after it; kept embeddings are used again if they fit.

    The last stage is forgotten first: a run killed in the middle has not kept a stage whose input is gone.
    """
    stages = STAGES[STAGES.index(find_stage(first)):]
    with lock(workspace.run):
        for stage in reversed(stages):
            remove([workspace.state / f"{stage.name}.json"])
            clear(stage, config, workspace)
        if stages[0] is STAGES[0]:
            _remove_patches(workspace)
    logger.info(f"{workspace.name}: {', '.join(stage.name for stage in stages)} will run anew")


def _remove_patches(workspace: Workspace) -> None:
    """Remove the patches that this program cut and can cut again; those that somebody brought have no patches.csv."""
    if not workspace.patches_csv.is_file():
        return
    if not has_files(workspace.slides):
        logger.warning(f"{workspace.slides} holds no slides to cut patches from anew: the patches that are there stay")
        return
    for split in SPLITS:
        shutil.rmtree(workspace.split(split), ignore_errors=True)
    remove([workspace.slides_csv, workspace.patches_csv])
