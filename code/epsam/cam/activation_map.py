"""A class activation map as stages keep and use it; plain NumPy, so that the report needs no torch."""

from dataclasses import dataclass

import cv2
import numpy as np

from epsam.errors import DataError


@dataclass(frozen=True)
class ActivationMap:
    """Where the classifier sees tumour in a patch, and from which value on it counts."""

    values: np.ndarray
    """(h, w) float32 in [0, 1]."""
    threshold: float
    """In [0, 1]; the CAM mask is where the map is greater."""


def resize_map(cam: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) in [0, 1] at `size` (height, width), bilinear, float32 in [0, 1]."""
    resized = cv2.resize(cam.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.clip(0, 1)


def around_half(values: np.ndarray, threshold: float) -> np.ndarray:
    """A map in [0, 1], any shape, float32, scaled piecewise linearly: 0, `threshold` and 1 become 0, 0.5 and 1."""
    return np.interp(values, [0, threshold, 1], [0, 0.5, 1]).astype(np.float32)


def check_finite_map(values: np.ndarray) -> None:
    if values.ndim != 2 or not np.isfinite(values).all():
        raise DataError(f"a CAM of shape {values.shape} is not a finite map; compute it again")
