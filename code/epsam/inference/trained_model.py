"""A trained model in Python: a picture or a slide in, tumour out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from epsam.errors import DataError, SlideError
from epsam.inference.checkpoints import Choice, choose_parts
from epsam.inference.resolution import model_mpp
from epsam.inference.run import InferenceSettings, infer, load_segmenter
from epsam.inference.slide_folder import slides_to_predict
from epsam.inference.slide_records import SlideState
from epsam.inference.tile_prediction import predict_picture
from epsam.models.find import find_model
from epsam.runtime.device import choose_hardware
from epsam.runtime.records import read_record
from epsam.self_test import difference_from_cpu


class TrainedModel:
    """A model that `load_model` loaded."""

    def __init__(self, choice: Choice, weights_dir: Path) -> None:
        config = choice.config
        self.config = config
        """The settings that it was trained with, with the overrides."""
        self._settings = InferenceSettings(
            test_dataset_dir=Path(),
            resnet_checkpoint=choice.classifier,
            sam_checkpoint=config.sam.checkpoint or choice.sam,
            sam_decoder_checkpoint=choice.decoder,
            student_checkpoint=choice.student,
            output_dir=Path(),
            config=config,
            weights_dir=weights_dir,
        )
        self._hardware = choose_hardware(config.profile, self_test=difference_from_cpu)
        self._segmenter = load_segmenter(self._settings, self._hardware)
        self.mpp = model_mpp(config.patches, *self._settings.checkpoints)
        """um/px of the patches of the training; None where it is not known."""

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Probability, float32 (H, W) in [0, 1], that each pixel of a picture is tumour.

        image: RGB uint8 (H, W, 3) at the resolution of the training (`mpp`), no side shorter than a patch of the
        training (`config.patches.size_px`); a larger one is predicted by overlapping tiles. The answer does not depend on
        other calls. Raises DataError for an array of another kind or size.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"image: expected RGB, uint8 (H, W, 3), found {image.dtype} {image.shape}; convert it")
        picture = predict_picture(np.ascontiguousarray(image), "image", self._segmenter)
        return picture.probability.astype(np.float32) / 255

    def segment_slide(self, path: str | Path, output: str | Path, *, mpp: float | None = None) -> dict[str, Any]:
        """Predict a whole slide and write to the folder `output` what ./infer.sh writes; gives its row of slides.csv.

        mpp: um/px of a slide whose file says none. Areas are in mm2 (`tumour_mm2`) and level-0 px2 (`tumour_px2`), lengths
        in mm and level-0 px; those in mm are None where the resolution is not known. A slide that is done already is not
        predicted again. Raises SlideError when the slide cannot be read, StateError when `output` holds predictions of
        another model.
        """
        slide, output = Path(path), Path(output)
        if slide.is_dir():
            raise SlideError(f"{slide} is a folder; give a slide (./infer.sh takes folders)")
        settings = replace(self._settings, test_dataset_dir=slide, output_dir=output, mpp=mpp)
        infer(settings, self._hardware, self._segmenter)
        (found,) = slides_to_predict([slide], mpp)
        state = read_record(output / "state" / "slides" / f"{found.name}.json", SlideState, "predict it again")
        return state.row.model_dump() if state.row else {}


def load_model(model: str, overrides: Sequence[str] = (), *, root: str | Path = ".") -> TrainedModel:
    """The model of this name, or of this file (.epsam), as ./infer.sh --model takes it, ready to predict.

    overrides: `section.key=value` in place of settings of the training, e.g. `inference.threshold=0.4`, `profile=cpu`.
    root: the folder of checkpoints/, by default the current one. Raises CheckpointError when there is no such model.
    """
    checkpoints = Path(root) / "checkpoints"
    return TrainedModel(choose_parts(find_model(model, checkpoints), None, tuple(overrides)), checkpoints)
