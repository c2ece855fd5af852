"""The simplest rival of every method: a patch's tumour is where one blurred colour is above or below a value."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from skimage.color import rgb2hed

from epsam.errors import DataError
from epsam.patches.patch import Patch
from epsam.runtime.files import read_image
from epsam.runtime.log import progress

CHANNELS = ("hematoxylin", "eosin", "saturation")
BINS = 500
BLUR = 1 / 16
"""Standard deviation of the blur, as a share of the patch's shorter side."""
STAIN_RANGE = 0.5
"""Amounts of a stain are between 0 and this (Ruifrok and Johnston 2001, as scikit-image scales them)."""


@dataclass(frozen=True)
class ColourThreshold:
    """Which colour marks tumour."""

    channel: str
    above: bool
    """Tumour is where the colour is at least `value`; else where it is less."""
    value: float
    """In [0, 1]."""

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Tumour in a patch, RGB uint8 (H, W, 3), as bool (H, W)."""
        colour = blurred_colours(image)[self.channel]
        return colour >= self.value if self.above else colour < self.value

    def __str__(self) -> str:
        return f"{self.channel} {'at least' if self.above else 'below'} {self.value:.3f}"


def blurred_colours(image: np.ndarray) -> dict[str, np.ndarray]:
    """The channels of an RGB uint8 image (H, W, 3), blurred, float32 (H, W) in [0, 1]."""
    stains = rgb2hed(image).astype(np.float32) / STAIN_RANGE
    saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].astype(np.float32) / 255
    sigma = max(1.0, BLUR * min(image.shape[:2]))
    planes = (stains[..., 0], stains[..., 1], saturation)
    return {
        name: cv2.GaussianBlur(np.ascontiguousarray(plane), (0, 0), sigma).clip(0, 1)
        for name, plane in zip(CHANNELS, planes, strict=True)
    }


def choose_colour(patches: Sequence[Patch]) -> ColourThreshold:
    """The threshold that best tells pixels of patches with tumour from those of normal ones, by patch labels alone.

    It maximises Youden's J, taking each pixel's label from its patch; no mask is looked at. Raises
    DataError where one of the two labels is missing.
    """
    counts = {name: np.zeros((2, BINS)) for name in CHANNELS}
    for patch in progress(patches, desc="colour threshold", unit="patch"):
        for name, values in blurred_colours(read_image(patch.path)).items():
            counts[name][patch.label] += np.histogram(values, BINS, (0, 1))[0]
    if not all(counts[CHANNELS[0]].sum(1)):
        raise DataError("a colour threshold needs patches with tumour and normal ones in the val split")
    found = []
    for name, histogram in counts.items():
        # Share of normal pixels and of those in patches with tumour that are below each threshold.
        normal, tumour = np.cumsum(histogram, 1) / histogram.sum(1, keepdims=True)
        gain = normal - tumour
        for above, score in ((True, gain), (False, -gain)):
            index = int(score.argmax())
            found.append((float(score[index]), ColourThreshold(name, above, (index + 1) / BINS)))
    return max(found, key=lambda pair: pair[0])[1]
