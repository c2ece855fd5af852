"""Maps of patches with their thresholds, for the patches of a split or for images at hand."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from epsam.cam.activation import compute_maps
from epsam.cam.activation_map import ActivationMap
from epsam.cam.threshold import fixed_threshold, otsu_threshold
from epsam.classifier.backbone import Backbone
from epsam.classifier.data import PatchImages, as_float, split_batches
from epsam.config.schema import Cam, Config
from epsam.patches.patch import Patch
from epsam.runtime.device import Hardware
from epsam.runtime.finite import check_finite
from epsam.runtime.log import progress
from epsam.runtime.memory import BatchSize


def find_cams(
    model: Backbone, images: torch.Tensor, names: Sequence[str], settings: Cam, hardware: Hardware
) -> list[ActivationMap]:
    """The map of each of `images` (N, 3, H, W) uint8 RGB, with the threshold that `settings` give it.

    Raises DataError with the name of the first patch whose map is not finite.
    """
    inputs = as_float(images, hardware.device)
    with hardware.autocast_prediction():
        maps = compute_maps(model, inputs, settings.rotations, settings.layer, settings.scales)
    check_finite(maps, names, "the classifier's maps")
    values = maps.float().cpu().numpy()
    if settings.threshold != "auto":
        return [ActivationMap(one, fixed_threshold(one, settings)) for one in values]
    with torch.inference_mode(), hardware.autocast_prediction():
        features = model.fine_features(inputs).float().cpu().numpy()
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return [
        ActivationMap(one, otsu_threshold(one, feature, image, settings))
        for one, feature, image in zip(values, features, pixels, strict=True)
    ]


def compute_split(
    model: Backbone, patches: Sequence[Patch], config: Config, hardware: Hardware, what: str = ""
) -> Iterator[tuple[str, ActivationMap]]:
    """Names and maps of `patches`, in batches that fit the device, with a progress bar. Raises as `find_cams` does.

    Several processes share the batches, and give the maps of all.
    """
    if not patches:
        return
    images = PatchImages(patches, config.worker_count)
    size = BatchSize("maps", hardware.cam_batch_at(config.cam.scales))
    batches = split_batches(len(patches), size.size)
    mine, found = hardware.ranks.part(batches), []
    with progress(total=sum(map(len, mine)), desc=f"maps {what}".strip(), unit="patch") as bar:
        for indices, batch in images.batches(mine, config.worker_count):
            names = [patches[index].name for index in indices]
            cams = size.run(partial(_in_parts, model, batch, names, config.cam, hardware))
            found.append(list(zip(names, cams, strict=True)))
            bar.update(len(indices))
    for part in hardware.ranks.interleave(found):
        yield from part


def _in_parts(
    model: Backbone, images: torch.Tensor, names: Sequence[str], settings: Cam, hardware: Hardware, size: int
) -> list[ActivationMap]:
    """The maps of `images`, `size` at a time."""
    starts = range(0, len(images), size)
    parts = [find_cams(model, images[i : i + size], names[i : i + size], settings, hardware) for i in starts]
    return [cam for part in parts for cam in part]
