"""Which checkpoints ./infer.sh predicts with, and the settings they were trained with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epsam.config.loading import config_from, find_config, load_config
from epsam.config.schema import Config
from epsam.errors import CheckpointError, ConfigError
from epsam.runtime.log import logger
from epsam.runtime.sidecar import read_metadata, sidecar_path

CLASSIFIER_END = "_resnet_adl.pth"


@dataclass(frozen=True)
class Choice:
    """What to predict with: the student, or the classifier and SAM with a decoder."""

    config: Config
    """Of the run that trained them."""
    student: Path | None
    decoder: Path | None
    """None where `student` is used."""


def choose_checkpoints(
    classifier: Path, student: Path | None, decoder: Path | None, config_name: str | None, overrides: tuple[str, ...]
) -> Choice:
    """The checkpoint that is named, `student` or `decoder`; without either the student of the run of `classifier`.

    Without a student there, or with `inference.model: sam`, it is the decoder of the last round of that run. Raises
    ConfigError when both are named, or when there are no settings; CheckpointError when a checkpoint is missing.
    """
    if student and decoder:
        raise ConfigError(
            f"both STUDENT_CHECKPOINT ({student}) and SAM_DECODER_CHECKPOINT ({decoder}) are set; set the one to "
            "predict with, and leave the other empty"
        )
    if not student and not decoder:
        student = _of_same_run(classifier, "_student.pth")
        if student.is_file() and settings_of([student], config_name, overrides).inference.model == "student":
            logger.info(f"predicting with the student, {student}; inference.model=sam takes the classifier and SAM")
        else:
            student, decoder = None, _last_decoder(classifier)
            logger.info(f"predicting with the classifier, {classifier}, and SAM with {decoder}")
    needed = [student] if student else [classifier, decoder]
    return Choice(settings_of([path for path in needed if path], config_name, overrides), student, decoder)


def settings_of(checkpoints: Sequence[Path], config_name: str | None, overrides: tuple[str, ...]) -> Config:
    """Settings that checkpoints were trained with: `config_name`, or what lies beside them, without its paths.

    The last one's count. Raises CheckpointError when a checkpoint is missing, ConfigError when no settings are found.
    """
    for path in checkpoints:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint; ./train.sh makes it, or set the path in infer.sh")
    if config_name:
        return load_config(find_config(config_name), overrides)
    for path in reversed(checkpoints):
        if settings := read_metadata(path).get("settings"):
            return config_from(settings, str(sidecar_path(path)), overrides, with_paths=False)
    last = checkpoints[-1]
    raise ConfigError(
        f"{last}: no settings beside it ({sidecar_path(last).name}); name those it was trained with, e.g. "
        "./infer.sh --config camelyon17"
    )


def _of_same_run(classifier: Path, end: str) -> Path:
    """The checkpoint beside `classifier` of the same run; raises ConfigError when its name says no run."""
    if not classifier.name.endswith(CLASSIFIER_END):
        raise ConfigError(
            f"RESNET_CHECKPOINT={classifier}: its name does not end in {CLASSIFIER_END}, so the checkpoints that belong "
            "to it cannot be found by name; set STUDENT_CHECKPOINT or SAM_DECODER_CHECKPOINT too"
        )
    return classifier.with_name(classifier.name.removesuffix(CLASSIFIER_END) + end)


def _last_decoder(classifier: Path) -> Path:
    start = _of_same_run(classifier, "_decoder_iter").name
    numbers = [
        int(match[1])
        for path in classifier.parent.glob("*.pth")
        if (match := re.fullmatch(re.escape(start) + r"([0-9]{1,4})\.pth", path.name))
    ]
    return classifier.with_name(f"{start}{max(numbers, default=3)}.pth")
