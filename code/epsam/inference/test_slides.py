"""Predicting the test slides of a run whole, as ./infer.sh does, for the evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from epsam.config.schema import Config
from epsam.errors import DataError, SlideError, StateError
from epsam.evaluation.methods import predicts_with_student
from epsam.inference.output import OutputFolder
from epsam.inference.resolution import model_mpp
from epsam.inference.run import InferenceSettings, infer, inference_signature
from epsam.inference.slide_records import read_table
from epsam.runtime.device import Hardware
from epsam.runtime.log import logger
from epsam.workspace import Workspace


def predict_test_slides(config: Config, workspace: Workspace, hardware: Hardware, slides: Sequence[Path]) -> set[str]:
    """Predict `slides` into runs/<name>/slides/ with the run's final model; those predicted before with it are kept.

    Gives the names of the slides that have a prediction of this model; one that fails is left out, with a warning. Raises
    CheckpointError when the run's weights are missing, StateError when the folder holds what this program did not write.
    """
    student = predicts_with_student(config)
    settings = InferenceSettings(
        test_dataset_dir=slides[0],
        others=tuple(slides[1:]),
        resnet_checkpoint=None if student else workspace.classifier,
        sam_checkpoint=None if student else config.sam.checkpoint,
        sam_decoder_checkpoint=None if student else workspace.used_decoder,
        student_checkpoint=workspace.student if student else None,
        output_dir=workspace.test_slides,
        config=config,
        weights_dir=workspace.checkpoints,
    )
    try:
        try:
            infer(settings, hardware)
        except StateError:  # predicted with other weights or settings
            infer(replace(settings, fresh=True), hardware)
    except (DataError, SlideError) as error:  # of a single slide, and of several
        logger.warning(f"evaluate: {error}")
    return _predicted(settings)


def _predicted(settings: InferenceSettings) -> set[str]:
    """Names of the slides that these weights and settings predicted; a call that failed early has not looked at the folder."""
    signature = inference_signature(settings, model_mpp(settings.config.patches, *settings.checkpoints))
    try:
        OutputFolder(settings.output_dir, signature, fresh=False)
    except StateError:
        return set()
    return {row["slide"] for row in read_table(settings.output_dir) if row["status"] == "ok"}
