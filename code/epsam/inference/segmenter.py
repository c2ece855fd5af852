"""What predicts patches and the tiles of slides: the classifier with SAM, or the student."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from epsam.config.schema import Config
from epsam.runtime.device import Hardware


class Segmenter(Protocol):
    """ImageSegmenter (epsam/segmenter.py) or StudentSegmenter (epsam/student/segmenter.py)."""

    config: Config
    """Of the run that trained it."""
    hardware: Hardware
    uses_classifier: bool
    """Whether `classify` says what the classifier says; else it gives 1 for all, and all are segmented."""
    usual_overlap: float
    """Of tiles, where `inference.overlap` is null: with less, whole slides are predicted worse (docs/RESULTS.md)."""

    def classify(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probability that a patch holds tumour, float32 (N,), for RGB uint8 (N, H, W, 3)."""

    def segment(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Tumour probability of each pixel, float32 (N, H, W)."""

    def masks(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Masks bool (N, H, W), postprocessed."""


def overlap_of(models: Segmenter) -> float:
    """Share of a tile's side that it has in common with the next one, in [0, 0.75]."""
    asked = models.config.inference.overlap
    return models.usual_overlap if asked is None else asked
