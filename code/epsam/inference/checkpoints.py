"""Which parts of a model ./infer.sh predicts with, and the settings they were trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epsam.config.loading import config_from, find_config, load_config
from epsam.config.schema import Config
from epsam.errors import CheckpointError, ConfigError
from epsam.models.find import Model
from epsam.runtime.log import logger
from epsam.runtime.model_file import PackedWeights, WeightsSource
from epsam.runtime.sidecar import read_metadata, sidecar_path


@dataclass(frozen=True)
class Choice:
    """What to predict with: the student, or the classifier and SAM with a decoder."""

    config: Config
    """Of the run that trained them."""
    classifier: WeightsSource | None
    decoder: WeightsSource | None
    student: WeightsSource | None
    """Alone, where it predicts."""
    sam: WeightsSource | None
    """SAM's own weights, where the model brings them."""


def choose_parts(model: Model, config_name: str | None, overrides: tuple[str, ...]) -> Choice:
    """The student of `model`; where it has none, or with `inference.model: sam`, its classifier and decoder.

    Raises CheckpointError when a checkpoint is missing, ConfigError when there are no settings.
    """
    with_sam = model.classifier is not None and model.decoder is not None
    if model.student:
        config = settings_of([model.student], config_name, overrides)
        if not with_sam or config.inference.model == "student":
            other = "; inference.model=sam takes the classifier and SAM" if with_sam else ""
            logger.info(f"predicting with the student, {model.student}{other}")
            return Choice(config, None, None, model.student, None)
    if model.classifier is None or model.decoder is None:
        raise CheckpointError(f"the model {model.name} has neither a student nor a classifier and a decoder")
    config = settings_of([model.classifier, model.decoder], config_name, overrides)
    logger.info(f"predicting with the classifier, {model.classifier}, and SAM with {model.decoder}")
    return Choice(config, model.classifier, model.decoder, None, model.sam)


def check_model_type(said: str, choice: Choice) -> None:
    """Raise ConfigError when SAM_MODEL_TYPE, `said`, is not the SAM that the model was trained with; "" says nothing."""
    trained_with = choice.config.sam.model_type
    if said and said != trained_with:
        raise ConfigError(
            f"SAM_MODEL_TYPE={said}, but {choice.student or choice.decoder} was trained with sam.model_type "
            f"{trained_with}; leave SAM_MODEL_TYPE empty"
        )


def warn_of_unused_sam(checkpoint: Path | None, choice: Choice) -> None:
    """Log a warning when SAM_CHECKPOINT, `checkpoint`, names a SAM and the student, which needs none, predicts."""
    if checkpoint and choice.student:
        logger.warning(
            f"SAM_CHECKPOINT={checkpoint} is not used: the student predicts, without SAM; inference.model=sam or "
            "SAM_DECODER_CHECKPOINT predicts with it"
        )


def settings_of(checkpoints: Sequence[WeightsSource], config_name: str | None, overrides: tuple[str, ...]) -> Config:
    """Settings that checkpoints were trained with: `config_name`, or what lies beside them, without its paths.

    The last one's count. Raises CheckpointError when a checkpoint is missing, ConfigError when no settings are found.
    """
    for path in checkpoints:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint; ./train.sh makes it, or correct the path")
    if config_name:
        return load_config(find_config(config_name), overrides)
    for path in reversed(checkpoints):
        if settings := read_metadata(path).get("settings"):
            return config_from(settings, _where(path), overrides, with_paths=False)
    last = checkpoints[-1]
    raise ConfigError(
        f"{last}: no settings beside it ({Path(_where(last)).name}); name those it was trained with, e.g. "
        "./infer.sh --config camelyon17"
    )


def _where(source: WeightsSource) -> str:
    """The file that holds the settings of weights."""
    return str(source.file if isinstance(source, PackedWeights) else sidecar_path(source))
