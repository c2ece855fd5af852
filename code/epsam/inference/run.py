"""What ./infer.sh does: patches or slides, found and predicted, each once."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epsam.config.schema import Config
from epsam.errors import CheckpointError, DataError, StateError
from epsam.inference.models import load_models, load_student_alone
from epsam.inference.output import OutputFolder, check_place
from epsam.inference.output_choice import choose_output
from epsam.inference.patch_folder import Patch, check_masks, find_patches
from epsam.inference.predict_patches import predict_patches
from epsam.inference.predict_slide import SlideToPredict
from epsam.inference.predict_slides import predict_slides
from epsam.inference.resolution import model_mpp
from epsam.inference.segmenter import Segmenter
from epsam.inference.slide_folder import slides_to_predict
from epsam.inference.slide_outputs import begin_slides, check_slide_free, check_slides_unchanged, delete_slides
from epsam.runs.claims import Claims
from epsam.runs.lock import STALE_S
from epsam.runtime.checkpoints import content_hash
from epsam.runtime.device import Hardware
from epsam.runtime.failures import has_usable_name
from epsam.runtime.log import logger
from epsam.runtime.model_file import WeightsSource


@dataclass(frozen=True)
class InferenceSettings:
    """The settings at the top of infer.sh."""

    test_dataset_dir: Path
    """A patch folder (image/, perhaps mask/), a slide, or a folder of slides."""
    resnet_checkpoint: WeightsSource | None
    """None with a student."""
    sam_checkpoint: WeightsSource | None
    """None: looked for in `weights_dir`, and fetched into it."""
    sam_decoder_checkpoint: WeightsSource | None
    """None with a student."""
    output_dir: Path
    config: Config
    """Of the run that trained the checkpoints."""
    fresh: bool = False
    """Replace what an earlier call wrote to `output_dir`, instead of keeping it and continuing."""
    weights_dir: Path = Path("checkpoints")
    mpp: float | None = None
    """um/px of slides whose files do not say it."""
    student_checkpoint: WeightsSource | None = None
    """In place of classifier, SAM and decoder, whose checkpoints are then not read."""
    others: tuple[Path, ...] = ()
    """Slides and folders of slides beside `test_dataset_dir`."""
    is_default_output: bool = False
    """Whether `output_dir` may be numbered, so that it is not one of other inputs or settings; see output_choice.py."""

    @property
    def inputs(self) -> list[Path]:
        """All that is to be predicted."""
        return [self.test_dataset_dir, *self.others]

    @property
    def checkpoints(self) -> list[WeightsSource]:
        """Those that are read, but SAM's own: the one whose settings count first."""
        if self.student_checkpoint:
            return [self.student_checkpoint]
        return [path for path in (self.sam_decoder_checkpoint, self.resnet_checkpoint) if path]


def infer(settings: InferenceSettings, hardware: Hardware, models: Segmenter | None = None) -> None:
    """Predict what the inputs hold and write it to `output_dir`; `models` where those of `settings` are loaded already.

    Raises DataError when there is nothing to predict or, at the end, when slides of a folder failed;
    SlideError for a single slide that cannot be read; CheckpointError for weights that do not fit; StateError
    when `output_dir` holds what was made with other settings or not by this program.
    """
    patches, slides = _find(settings)
    check_masks(patches)
    sam = [settings.sam_checkpoint] if settings.sam_checkpoint and not settings.student_checkpoint else []
    for path in (*reversed(settings.checkpoints), *sam):
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint; ./train.sh makes it, or set the path in infer.sh")
    config = settings.config
    trained_at = model_mpp(config.patches, *settings.checkpoints)
    if slides and trained_at is None:
        logger.warning(
            "the checkpoints do not say at which resolution they were trained; slides are read as they are (level 0)"
        )
    if patches and trained_at is not None:
        logger.info(f"patches are read as they are; they should show {trained_at:g} um/px, as those of the training")
    signature, inputs = inference_signature(settings, trained_at), [str(p.resolve()) for p in settings.inputs]
    output = settings.output_dir
    if settings.is_default_output:
        output = choose_output(output, inputs, signature, fresh=settings.fresh)
    for data in settings.inputs:
        check_place(data, output)
    logger.info(f"predictions are written to {output}")
    with Claims(output / "state" / "claims") as claims:
        alone = settings.fresh or bool(patches)
        with claims.hold("open", output):
            _join(claims, output, "job-alone" if alone else "job-slides", settings)
            _open(settings, output, signature, inputs, patches, slides)  # before models are loaded for nothing
        models = models or load_segmenter(settings, hardware)
        with claims.hold("open", output):
            folder = _open(settings, output, signature, inputs, patches, slides)
            if settings.fresh:
                delete_slides(output)
            if slides:
                begin_slides(folder)
        if patches:
            with folder:
                predict_patches(settings.test_dataset_dir, patches, folder, models)
        else:
            if alone:  # all is deleted: other jobs may join now
                claims.take(f"job-slides-{secrets.token_hex(4)}")
                claims.release(claims.mine("job-alone"))
            predict_slides(slides, output, claims, models, trained_at)


def _join(claims: Claims, output: Path, kind: str, settings: InferenceSettings) -> None:
    """Claim a place among the jobs that write to `output`; StateError when they cannot work side by side."""
    others = claims.others("job-")
    in_the_way = others if kind == "job-alone" else [name for name in others if name.startswith("job-alone")]
    if in_the_way:
        advice = " Give --fresh to one job, before the others start." if settings.fresh else ""
        raise StateError(
            f"{output} is in use by {claims.describe(in_the_way[0])}. Wait for it or stop it; if it is gone (its machine "
            f"was restarted, say), run again in {STALE_S:.0f} s.{advice}"
        )
    claims.take(f"{kind}-{secrets.token_hex(4)}")


def _open(
    settings: InferenceSettings,
    output: Path,
    signature: dict[str, Any],
    inputs: list[str],
    patches: list[Patch],
    slides: list[SlideToPredict],
) -> OutputFolder:
    """OUTPUT_DIR, looked at and not written to; StateError where it holds what must not be replaced."""
    folder = OutputFolder(output, signature, fresh=settings.fresh, inputs=inputs)
    if settings.fresh:
        check_slides_unchanged(output)
    elif settings.is_default_output and folder.inputs != inputs:
        raise StateError(f"{output} was taken by another call in this moment; run the same command again")
    _check_free(folder, [patch.name for patch in patches], slides)
    return folder


def _find(settings: InferenceSettings) -> tuple[list[Patch], list[SlideToPredict]]:
    """What is to be predicted: the patches of one folder, or slides."""
    folder = next((path for path in settings.inputs if (path / "image").is_dir()), None)
    if folder is None:
        return [], slides_to_predict(settings.inputs, settings.mpp)
    if settings.others:
        raise DataError(
            f"{folder}: a patch folder (image/ lies in it) is predicted in a call of its own; give it alone"
        )
    return find_patches(folder), []


def load_segmenter(settings: InferenceSettings, hardware: Hardware) -> Segmenter:
    """The student, or the classifier and SAM; raises CheckpointError for weights that do not fit."""
    config = settings.config
    if settings.student_checkpoint:
        return load_student_alone(config, hardware, settings.student_checkpoint)
    if settings.sam_decoder_checkpoint is None or settings.resnet_checkpoint is None:
        raise CheckpointError(
            "neither a student nor a classifier with a decoder of SAM is given; name one to predict with"
        )
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
        folder.check_free(["slides.csv", "index.html"])
        for slide in slides:
            if has_usable_name(slide.path):
                check_slide_free(folder.path, slide.name)
    else:
        folder.check_free(["predictions.csv", "index.html"])
        for place in ("mask", "overlay"):
            folder.check_free([f"{name}.png" for name in patches], place)


def inference_signature(settings: InferenceSettings, trained_at: float | None) -> dict[str, Any]:
    """What predictions depend on: the weights and the settings that are used here."""
    dump = settings.config.model_dump(mode="json")
    patches = {key: dump["patches"][key] for key in ("size_px", "target_mpp", "tissue")}
    signature = _weights(settings) | {
        "patches": patches,
        "trained_at_mpp": trained_at,
        "seed": settings.config.finetune.seed,  # of the order of tiles too, by which a stopped slide goes on
        "postprocess": dump["postprocess"],
        "inference": {key: value for key, value in dump["inference"].items() if key != "lymph_nodes"},
    }
    if settings.student_checkpoint:  # it takes no prompts
        return signature
    return signature | {section: dump[section] for section in ("cam", "prompts")}


def _weights(settings: InferenceSettings) -> dict[str, str]:
    """What the checkpoints hold, by their names in infer.sh."""
    if settings.student_checkpoint:
        return {"STUDENT_CHECKPOINT": content_hash(settings.student_checkpoint)}
    classifier, decoder = settings.resnet_checkpoint, settings.sam_decoder_checkpoint
    return {
        "RESNET_CHECKPOINT": content_hash(classifier) if classifier else "",
        "SAM_CHECKPOINT": content_hash(settings.sam_checkpoint)
        if settings.sam_checkpoint
        else settings.config.sam.model_type,
        "SAM_DECODER_CHECKPOINT": content_hash(decoder) if decoder else "",
    }
