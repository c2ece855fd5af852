"""What ./infer.sh does: patches or slides, found and predicted, each once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epsam.config.schema import Config
from epsam.errors import CheckpointError
from epsam.inference.models import load_models, load_student_alone
from epsam.inference.output import OUTPUTS, OutputFolder, check_place
from epsam.inference.patch_folder import check_masks, find_patches
from epsam.inference.predict_patches import predict_patches
from epsam.inference.predict_slide import SlideToPredict
from epsam.inference.predict_slides import predict_slides
from epsam.inference.resolution import model_mpp
from epsam.inference.segmenter import Segmenter
from epsam.inference.slide_folder import slides_to_predict
from epsam.runs.lock import lock
from epsam.runtime.device import Hardware
from epsam.runtime.failures import has_usable_name
from epsam.runtime.files import sha256
from epsam.runtime.log import logger


@dataclass(frozen=True)
class InferenceSettings:
    """The settings at the top of infer.sh."""

    test_dataset_dir: Path
    """A patch folder (image/, perhaps mask/), a slide, or a folder of slides."""
    resnet_checkpoint: Path
    sam_model_type: str
    sam_checkpoint: Path | None
    """None: looked for in `weights_dir`, and fetched into it."""
    sam_decoder_checkpoint: Path | None
    """None with a student."""
    output_dir: Path
    config: Config
    """Of the run that trained the checkpoints."""
    fresh: bool = False
    """Replace what an earlier call wrote to `output_dir`, instead of keeping it and going on."""
    weights_dir: Path = Path("checkpoints")
    mpp: float | None = None
    """um/px of slides whose files do not say it."""
    student_checkpoint: Path | None = None
    """In place of classifier, SAM and decoder, whose checkpoints are then not read."""

    @property
    def checkpoints(self) -> list[Path]:
        """Those that are read, but SAM's own: the one whose settings count first."""
        if self.student_checkpoint:
            return [self.student_checkpoint]
        return [*([self.sam_decoder_checkpoint] if self.sam_decoder_checkpoint else []), self.resnet_checkpoint]


def infer(settings: InferenceSettings, hardware: Hardware) -> None:
    """Predict what `test_dataset_dir` holds and write it to `output_dir`.

    Raises DataError when there is nothing to predict or, at the end, when slides of a folder failed;
    SlideError for a single slide that cannot be read; CheckpointError for weights that do not fit; StateError
    when `output_dir` holds what was made with other settings or not by this program.
    """
    data, output = settings.test_dataset_dir, settings.output_dir
    patches = find_patches(data) if (data / "image").is_dir() else []
    slides = [] if patches else slides_to_predict(data, settings.mpp)
    check_masks(patches)
    check_place(data, output)
    sam = [settings.sam_checkpoint] if settings.sam_checkpoint and not settings.student_checkpoint else []
    for path in (*reversed(settings.checkpoints), *sam):
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint; ./train.sh makes it, or set the path in infer.sh")
    config = settings.config.model_copy(
        update={"sam": settings.config.sam.model_copy(update={"model_type": settings.sam_model_type})}
    )
    trained_at = model_mpp(config.patches, *settings.checkpoints)
    if slides and trained_at is None:
        logger.warning(
            "the checkpoints do not say at which resolution they were trained; slides are read as they are (level 0)"
        )
    with lock(output / "state"):
        folder = OutputFolder(output, inference_signature(settings, config, trained_at), fresh=settings.fresh)
        _check_free(folder, [patch.name for patch in patches], slides)
        models = _load(settings, config, hardware)
        with folder:
            if patches:
                predict_patches(data, patches, folder, models)
            else:
                predict_slides(slides, folder, models, trained_at)


def _load(settings: InferenceSettings, config: Config, hardware: Hardware) -> Segmenter:
    if settings.student_checkpoint:
        return load_student_alone(config, hardware, settings.student_checkpoint)
    if settings.sam_decoder_checkpoint is None:
        raise CheckpointError("neither a student nor a decoder of SAM is given; name one to predict with")
    return load_models(
        config,
        hardware,
        resnet=settings.resnet_checkpoint,
        sam=settings.sam_checkpoint,
        decoder=settings.sam_decoder_checkpoint,
        weights_dir=settings.weights_dir,
    )


def _check_free(folder: OutputFolder, patches: list[str], slides: list[SlideToPredict]) -> None:
    """Refuse, before models are loaded, an OUTPUT_DIR with files of others where outputs would go."""
    if slides:
        names = [slide.name for slide in slides if has_usable_name(slide.path)]
        folder.check_free(["slides.csv", *(name + suffix for name in names for suffix in OUTPUTS)])
    else:
        folder.check_free(["predictions.csv"])
        for place in ("mask", "overlay"):
            folder.check_free([f"{name}.png" for name in patches], place)


def inference_signature(settings: InferenceSettings, config: Config, trained_at: float | None) -> dict[str, Any]:
    """What predictions depend on: the weights and the settings that are used here."""
    dump = config.model_dump(mode="json")
    patches = {key: dump["patches"][key] for key in ("size_px", "target_mpp", "tissue")}
    return (
        _weights(settings)
        | {
            "patches": patches,
            "trained_at_mpp": trained_at,
            "seed": config.finetune.seed,
            "postprocess": dump["postprocess"],
        }
        | {section: dump[section] for section in ("cam", "prompts", "inference")}
    )


def _weights(settings: InferenceSettings) -> dict[str, str]:
    """What the checkpoints hold, by their names in infer.sh."""
    if settings.student_checkpoint:
        return {"STUDENT_CHECKPOINT": sha256(settings.student_checkpoint)}
    decoder = settings.sam_decoder_checkpoint
    return {
        "RESNET_CHECKPOINT": sha256(settings.resnet_checkpoint),
        "SAM_CHECKPOINT": sha256(settings.sam_checkpoint) if settings.sam_checkpoint else settings.sam_model_type,
        "SAM_DECODER_CHECKPOINT": sha256(decoder) if decoder else "",
    }
