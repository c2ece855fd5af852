"""How well the network's maps find tumour: for choosing a layer without outlines, or an epoch with them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from epsam.classifier.activation import LAYERS, agreement, compute_maps, resize_map, rotation_maps
from epsam.classifier.data import PatchImages, as_float, split_batches
from epsam.classifier.resnet import ResNetADL
from epsam.config import Config
from epsam.errors import CheckpointError, DataError
from epsam.metrics import MapCurve
from epsam.patches import Patch, patches_for_classifier, patches_for_sam
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_mask
from epsam.runtime.settings import read_note
from epsam.workspace import Workspace


def layer_agreements(model: ResNetADL, config: Config, workspace: Workspace, hardware: Hardware) -> dict[str, float]:
    """For each of LAYERS, how far the maps of a patch's rotations agree: mean correlation in [-1, 1] over the val
    split's positives."""
    patches = patches_for_sam(workspace, "val") or [p for p in patches_for_classifier(workspace, "val") if p.label]
    found: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    model.eval()
    for _, images in _batches(patches, config, hardware):
        for layer, values in found.items():
            with hardware.autocast():
                values += agreement(rotation_maps(model, images, layer=layer)).tolist()
    return {layer: sum(values) / len(values) for layer, values in found.items()}


def with_layer(config: Config, classifier: Path) -> Config:
    """`config` with `cam.layer: auto` replaced by the layer that was noted beside `classifier` when it was trained.

    Raises CheckpointError when none was.
    """
    if config.cam.layer != "auto":
        return config
    layer = read_note(classifier).get("layer")
    if layer not in LAYERS:
        raise CheckpointError(f"{classifier}: nothing beside it tells the layer for its maps, which cam.layer=auto asks "
                              f"for; set cam.layer to one of {', '.join(LAYERS)}")
    return config.model_copy(update={"cam": config.cam.model_copy(update={"layer": layer})})


def map_error(model: ResNetADL, config: Config, workspace: Workspace, hardware: Hardware) -> float:
    """1 - PxAP, in [0, 1], of the maps of the val split's positives; with `cam.layer: auto`, of the better layer.

    Raises DataError when a patch has no mask.
    """
    patches = patches_for_sam(workspace, "val")
    missing = sum(not patch.mask.is_file() for patch in patches)
    if missing or not patches:
        raise DataError(f"{workspace.split('val')}/mask: {missing or 'all'} of {len(patches)} masks are missing to choose "
                        "an epoch by; set classifier.select_on=labels")
    layers = LAYERS if config.cam.layer == "auto" else (config.cam.layer,)
    curves = {layer: MapCurve() for layer in layers}
    model.eval()
    for indices, images in _batches(patches, config, hardware):
        truths = [read_mask(patches[index].mask) for index in indices]
        for layer, curve in curves.items():
            with hardware.autocast():
                maps = compute_maps(model, images, config.cam.rotations, layer)
            for cam, truth in zip(maps.cpu().numpy(), truths, strict=True):
                curve.add(resize_map(cam, truth.shape), truth)
    return 1 - max(curve.average_precision(1, "selection")[0] for curve in curves.values())


def _batches(patches: Sequence[Patch], config: Config, hardware: Hardware) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Indices and images (N, 3, H, W) float in [0, 1] on the device."""
    images = PatchImages(patches, config.worker_count)
    for indices, batch in images.batches(split_batches(len(patches), hardware.cam_batch), config.worker_count):
        yield indices, as_float(batch, hardware.device)
