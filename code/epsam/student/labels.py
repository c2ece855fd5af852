"""The student's labels: CAM masks, or what the used round predicts and the CAM mask where that does not pass the filter.

PNG, 255 is tumour, 0 is not, LEFT_OUT_GREY is left out of the loss (`student.left_out`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from epsam.cam.activation_map import around_half, resize_map
from epsam.cam.mask import cam_mask
from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.pseudo_labels import make_pseudo_labels
from epsam.rounds import used_round
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_pixels, write_png
from epsam.runtime.log import logger
from epsam.sam.samples import Example, patch_size
from epsam.sam.session import SamSession
from epsam.workspace import Workspace

SPLITS_WITH_LABELS = ("train", "val")
LEFT_OUT_GREY = 128
LEFT_OUT = 2
"""Of a pixel whose class is not known, in the labels that a loss takes; 0 is no tumour, 1 tumour."""


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
        used = used_round(workspace)
        session.use_decoder(workspace.decoder(used))
        candidates = make_pseudo_labels(session, split, folder)
        dropped = [candidate.example for candidate in candidates if not candidate.kept]
        _write_cam_masks(config, hardware, dropped, folder)
        logger.info(
            f"student: labels of {split}: {len(candidates) - len(dropped)} predicted by round "
            f"{used}, {len(dropped)} CAM masks where the filter dropped the prediction"
        )


def _write_cam_masks(config: Config, hardware: Hardware, examples: Sequence[Example], folder: Path) -> None:
    for example in hardware.ranks.part(examples):
        label = _label_of_map(config, example)
        write_png(folder / f"{example.patch.name}.png", label)
    hardware.ranks.wait()


def _label_of_map(config: Config, example: Example) -> np.ndarray:
    """The CAM mask of a patch (H, W), uint8 0 and 255, and LEFT_OUT_GREY where the map is too close to its threshold."""
    size = patch_size(example.patch)
    label = cam_mask(example.cam, config.cam, size).astype(np.uint8) * 255
    if config.student.left_out is not None:
        low, high = config.student.left_out
        scaled = around_half(resize_map(example.cam.values, size), example.cam.threshold)
        label[(low <= scaled) & (scaled <= high)] = LEFT_OUT_GREY
    return label


def read_label(path: Path) -> np.ndarray:
    """A label that `write_labels` wrote, (H, W) uint8 of 0, 1 and LEFT_OUT. Raises DataError for anything else."""
    pixels = read_pixels(path)
    known, tumour = pixels != LEFT_OUT_GREY, pixels == 255
    if pixels.ndim != 2 or not (tumour | (pixels == 0))[known].all():
        raise DataError(
            f"{path}: not a label of the student (0, {LEFT_OUT_GREY} and 255); start again with --from distill"
        )
    return np.where(known, tumour, LEFT_OUT).astype(np.uint8)
