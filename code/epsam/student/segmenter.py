"""The student in place of classifier and SAM: images in, tumour probability out."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from epsam.classifier.data import as_float
from epsam.config.schema import Config
from epsam.runtime.device import Hardware
from epsam.runtime.finite import check_finite
from epsam.runtime.memory import BatchSize
from epsam.runtime.views import VIEWS
from epsam.sam.postprocessing import without_small_regions
from epsam.segmenter import CPU_PIXELS
from epsam.student.network import Student


class StudentSegmenter:
    """A trained student, with the interface of ImageSegmenter; `config` is that of the run that trained it.

    It has seen normal tissue, so no classifier has to exclude patches before, and it takes no prompts.
    """

    uses_classifier = False
    usual_overlap = 0.25

    def __init__(self, student: Student, config: Config, hardware: Hardware):
        self.student, self.config, self.hardware = student, config, hardware
        self._batch = BatchSize("student", hardware.classifier_batch)

    def classify(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """1 for each of the patches, float32 (N,): none is excluded before it is segmented."""
        return np.ones(len(images), np.float32)

    def segment(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Tumour probability of each pixel, float32 (N, H, W), for tiles RGB uint8 (N, H, W, 3) of any tissue.

        Raises DataError with the name of the first whose logits are not finite.
        """
        return self._probabilities(images, names, 1)

    def masks(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Masks bool (N, H, W) of patches RGB uint8 (N, H, W, 3), small regions removed as in training and evaluation.

        A patch is seen in `inference.student_views` views, where tiles of a slide overlap.
        """
        return np.stack(
            [
                without_small_regions(probability > 0.5, self.config.postprocess.min_region_px)
                for probability in self._probabilities(images, names, self.config.inference.student_views)
            ]
        )

    @torch.inference_mode()
    def _probabilities(self, images: np.ndarray, names: Sequence[str], views: int) -> np.ndarray:
        """The mean over views of the tumour probability of each pixel, float32 (N, H, W)."""
        total = torch.zeros(images.shape[:3], device=self.hardware.device)
        for view in VIEWS[:views]:
            logits = self._batch.run(partial(self._logits, images, view))
            check_finite(logits, names, "the student's logits")
            total += torch.sigmoid(logits)
        return (total / views).cpu().numpy()

    def _logits(self, images: np.ndarray, view: tuple[int, bool], size: int) -> torch.Tensor:
        """Logits (N, H, W) float32 of patches seen in a view, in the frame of the patches; `size` at a time."""
        if self.hardware.device.type == "cpu":
            size = max(1, min(size, CPU_PIXELS // images[0, ..., 0].size))
        turns, mirrored = view
        parts = []
        for start in range(0, len(images), size):
            inputs = self._as_input(images[start : start + size])
            if turns:
                inputs = torch.rot90(inputs, turns, (2, 3))
            if mirrored:
                inputs = inputs.flip(3)
            with self.hardware.autocast_prediction():
                logits = self.student(inputs.contiguous(memory_format=torch.channels_last))
            parts.append(torch.rot90(logits.flip(2) if mirrored else logits, -turns, (1, 2)))
        return torch.cat(parts)

    def _as_input(self, images: np.ndarray) -> torch.Tensor:
        """RGB uint8 (N, H, W, 3) to float [0, 1] (N, 3, H, W) on the device."""
        return as_float(torch.from_numpy(images).permute(0, 3, 1, 2), self.hardware.device)
