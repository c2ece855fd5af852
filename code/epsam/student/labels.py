"""The student's labels: CAM masks, or what the last round predicts and the CAM mask where that does not pass the filter."""

from collections.abc import Sequence
from pathlib import Path

from epsam.cam.mask import cam_mask
from epsam.config.schema import Config
from epsam.pseudo_labels import make_pseudo_labels
from epsam.runtime.device import Hardware
from epsam.runtime.files import write_png
from epsam.runtime.log import logger
from epsam.sam.samples import Example, patch_size
from epsam.sam.session import SamSession
from epsam.workspace import Workspace

SPLITS_WITH_LABELS = ("train", "val")


def labels_folder(workspace: Workspace, split: str) -> Path:
    """Folder of the student's labels of a split, <patch name>.png."""
    return workspace.split(split) / "distill"


def write_labels(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Write a mask for every positive patch of train and val."""
    session = SamSession(config, workspace, hardware)
    for split in SPLITS_WITH_LABELS:
        folder = labels_folder(workspace, split)
        if config.student.labels == "cam":
            examples = session.examples(split)
            _write_cam_masks(config, hardware, examples, folder)
            logger.info(f"student: labels of {split}: {len(examples)} CAM masks")
            continue
        session.use_decoder(workspace.decoder(config.retrain.rounds))
        candidates = make_pseudo_labels(session, split, folder)
        dropped = [candidate.example for candidate in candidates if not candidate.kept]
        _write_cam_masks(config, hardware, dropped, folder)
        logger.info(
            f"student: labels of {split}: {len(candidates) - len(dropped)} predicted by round "
            f"{config.retrain.rounds}, {len(dropped)} CAM masks where the filter dropped the prediction"
        )


def _write_cam_masks(config: Config, hardware: Hardware, examples: Sequence[Example], folder: Path) -> None:
    for example in hardware.ranks.part(examples):
        mask = cam_mask(example.cam, config.cam, patch_size(example.patch))
        write_png(folder / f"{example.patch.name}.png", mask)
    hardware.ranks.wait()
