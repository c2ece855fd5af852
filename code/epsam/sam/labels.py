"""What SAM's decoder learns from, and what its best epoch is chosen by: patches with their masks."""

from collections.abc import Sequence
from pathlib import Path

from epsam.errors import DataError
from epsam.runtime.files import read_mask
from epsam.runtime.log import logger
from epsam.sam.samples import Example, LabelledExample
from epsam.sam.session import SamSession
from epsam.workspace import Workspace


def labels_folder(workspace: Workspace, split: str, round_: int) -> Path:
    """Folder of the masks that a round is trained on (train) or chosen by (val)."""
    return workspace.split(split) / workspace.pseudo_labels(round_).name


def with_labels(examples: Sequence[Example], folder: Path) -> list[LabelledExample]:
    """The examples with the masks of `folder` as targets; empty masks teach nothing and are left out.

    Raises DataError when a mask is missing, or all are empty.
    """
    targets = {example.position: folder / f"{example.patch.name}.png" for example in examples}
    missing = [target for target in targets.values() if not target.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} is missing ({len(missing)} of {len(targets)} masks); initial masks are made by "
            "the stage initial-masks, true ones come with the patches"
        )
    kept = [
        LabelledExample.of(example, targets[example.position])
        for example in examples
        if read_mask(targets[example.position]).any()
    ]
    if not kept:
        raise DataError(
            f"{folder}: all {len(targets)} masks are empty, there is nothing to learn. If they come from the "
            "classifier's maps, look at its AUC, and lower cam.percentile, cam.threshold or "
            "cam.opening_px with --from initial-masks"
        )
    if len(kept) < len(targets):
        logger.warning(f"{folder}: {len(targets) - len(kept)} of {len(targets)} masks are empty and are left out")
    return kept


def validation_examples(session: SamSession, round_: int) -> list[LabelledExample]:
    """Val patches with what the best epoch is chosen by: pseudo masks, or true ones with `select_on: val_masks`."""
    examples = session.examples("val")
    if not examples:
        raise DataError(f"{session.workspace.split('val')}: no positive patch to choose the best epoch by")
    if session.config.finetune.select_on == "val_masks":
        return with_true_masks(session)
    folder = labels_folder(session.workspace, "val", round_)
    labelled = [example for example in examples if (folder / f"{example.patch.name}.png").is_file()]
    if not labelled and round_:
        logger.warning(
            f"{folder}: no pseudo-label of the val split passed the filter; the best epoch of round "
            f"{round_} is chosen by the CAM masks instead"
        )
        return validation_examples(session, 0)
    return with_labels(labelled, folder)


def with_true_masks(session: SamSession) -> list[LabelledExample]:
    """Val patches with their true masks. Raises DataError when there is none."""
    true = [LabelledExample.of(e, e.patch.mask) for e in session.examples("val") if e.patch.has_mask]
    if not true:
        raise DataError(f"{session.workspace.split('val')}: no mask/ to choose by; set finetune.select_on=pseudo")
    return true
