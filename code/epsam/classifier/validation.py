"""How well the network's maps find tumour, for choosing an epoch by outlines where there are some."""

from functools import partial

import numpy as np
import torch

from epsam.cam.activation import compute_maps
from epsam.cam.activation_map import resize_map
from epsam.classifier.backbone import Backbone
from epsam.classifier.data import PatchImages, as_float, split_batches
from epsam.config.schema import Cam, Config
from epsam.errors import DataError
from epsam.evaluation.metrics import MapCurve
from epsam.patches.patch import patches_for_sam
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_mask
from epsam.runtime.memory import BatchSize
from epsam.workspace import Workspace


def map_error(model: Backbone, config: Config, workspace: Workspace, hardware: Hardware) -> float:
    """1 - PxAP, in [0, 1], of the maps of the val split's positives. Raises DataError when one has no mask."""
    patches = patches_for_sam(workspace, "val")
    missing = sum(not patch.mask.is_file() for patch in patches)
    if missing or not patches:
        raise DataError(
            f"{workspace.split('val')}/mask: {missing or 'all'} of {len(patches)} masks are missing to choose "
            "an epoch by; set classifier.select_on=labels"
        )
    model.eval()
    images, curve = PatchImages(patches, config.worker_count), MapCurve()
    size = BatchSize("maps", hardware.cam_batch_at(config.cam.scales))
    for indices, batch in images.batches(split_batches(len(patches), size.size), config.worker_count):
        maps = size.run(partial(_maps, model, batch, config.cam, hardware))
        for index, values in zip(indices, maps, strict=True):
            truth = read_mask(patches[index].mask)
            curve.add(resize_map(values, truth.shape), truth)
    return 1 - curve.average_precision(1, "selection")[0]


def _maps(model: Backbone, images: torch.Tensor, cam: Cam, hardware: Hardware, size: int) -> np.ndarray:
    """Maps (N, h, w) of a batch, `size` images at a time."""
    found = []
    for part in images.split(size):
        with hardware.autocast():
            inputs = as_float(part, hardware.device)
            found.append(compute_maps(model, inputs, cam.rotations, cam.layer, cam.scales).cpu())
    return torch.cat(found).numpy()
