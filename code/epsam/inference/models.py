"""The trained models together: patches in, tumour probability out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from epsam.classifier.building import load_classifier
from epsam.config.schema import Config
from epsam.errors import CheckpointError
from epsam.runtime.checkpoints import load_tensors
from epsam.runtime.device import Hardware
from epsam.runtime.model_file import WeightsSource
from epsam.sam.checkpoint import load_decoder, load_sam
from epsam.segmenter import ImageSegmenter
from epsam.student.network import load_student
from epsam.student.segmenter import StudentSegmenter

Model = TypeVar("Model")


CLASSIFIER, WHOLE_SAM, DECODER, STUDENT = "a classifier", "a whole SAM", "a SAM mask decoder", "a student"


BELONGS = {
    CLASSIFIER: "RESNET_CHECKPOINT",
    WHOLE_SAM: "SAM_CHECKPOINT",
    DECODER: "SAM_DECODER_CHECKPOINT",
    STUDENT: "STUDENT_CHECKPOINT",
}


def load_models(
    config: Config,
    hardware: Hardware,
    *,
    resnet: WeightsSource,
    sam: WeightsSource | None,
    decoder: WeightsSource,
    weights_dir: Path,
) -> ImageSegmenter:
    """Load all three; raises CheckpointError, saying which belongs where when they were swapped."""
    classifier = _load(CLASSIFIER, resnet, lambda: load_classifier(config.classifier, resnet, hardware.device))
    model = _load(WHOLE_SAM, sam, lambda: load_sam(config.sam.model_type, sam, weights_dir, hardware.device))
    _load(DECODER, decoder, lambda: load_decoder(model, decoder))
    return ImageSegmenter(classifier, model, config, hardware)


def load_student_alone(config: Config, hardware: Hardware, student: WeightsSource) -> StudentSegmenter:
    """Load the student; raises CheckpointError, saying where a file of other weights belongs."""
    network = _load(STUDENT, student, lambda: load_student(config.classifier, student, hardware.device))
    return StudentSegmenter(network, config, hardware)


def _load(wanted: str, path: WeightsSource | None, load: Callable[[], Model]) -> Model:
    try:
        return load()
    except CheckpointError as error:
        if path is None or not path.is_file():
            raise
        found = kind_of(load_tensors(path))
        if found in (None, wanted):
            raise
        raise CheckpointError(
            f"{BELONGS[wanted]}={path} holds {found}, not {wanted}; set {BELONGS[found]} to it "
            f"and {BELONGS[wanted]} to the other file"
        ) from error


def kind_of(weights: Mapping) -> str | None:
    """What a file of weights holds, by its names; None when it is none of ours."""
    for value in weights.values():
        if isinstance(value, Mapping):
            return kind_of(value)
    names = [str(name) for name in weights]
    if any(name.startswith("trunk.") for name in names):
        return STUDENT
    if any("image_encoder." in name for name in names):
        return WHOLE_SAM
    if any("mask_decoder." in name for name in names):
        return DECODER
    return CLASSIFIER if any(name.endswith(("conv1.weight", "stem.conv.weight")) for name in names) else None
