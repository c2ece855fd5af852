"""The environment variables of infer.sh, those of the published script and what was added to them."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from epsam.errors import ConfigError
from epsam.runtime.user_paths import from_user

NAMES = (
    "TEST_DATASET_DIR",
    "RESNET_CHECKPOINT",
    "SAM_MODEL_TYPE",
    "SAM_CHECKPOINT",
    "SAM_DECODER_CHECKPOINT",
    "STUDENT_CHECKPOINT",
    "OUTPUT_DIR",
)
PARTS = ("RESNET_CHECKPOINT", "SAM_DECODER_CHECKPOINT", "STUDENT_CHECKPOINT")
"""Those that name parts of a model, in place of --model."""
SIMILARITY = 0.85
"""Of difflib, from 0 to 1, above which a name is taken for a misspelt one."""


@dataclass(frozen=True)
class Variables:
    """What the environment says; None or "" where a variable is empty or not set."""

    test_dataset_dir: Path | None
    resnet_checkpoint: Path | None
    sam_model_type: str
    sam_checkpoint: Path | None
    sam_decoder_checkpoint: Path | None
    student_checkpoint: Path | None
    output_dir: Path | None


def read_variables(environment: Mapping[str, str], *, inputs: bool, model: bool, output: bool) -> Variables:
    """The variables; paths count from where the user stands. The flags say what the command line gives itself.

    Raises ConfigError for a variable that says what the command line says too, and for one whose name is nearly one of
    NAMES that is not set itself.
    """
    given = {name: environment.get(name, "") for name in NAMES}
    unset = [name for name, value in given.items() if not value]
    for name in sorted(set(environment) - set(NAMES)):
        if near := difflib.get_close_matches(name, unset, 1, SIMILARITY):
            raise ConfigError(f"the environment variable {name} is not one of ./infer.sh; did you mean {near[0]}?")
    arguments = {"a slide or folder": (inputs, ["TEST_DATASET_DIR"]), "--model": (model, PARTS)}
    for argument, (is_given, names) in (arguments | {"--output": (output, ["OUTPUT_DIR"])}).items():
        if is_given and (twice := next((name for name in names if given[name]), None)):
            raise ConfigError(
                f"both {argument} and the environment variable {twice} ({given[twice]}) are given; leave one out"
            )
    paths = {name.lower(): from_user(value) if value else None for name, value in given.items()}
    return Variables(**paths | {"sam_model_type": given["SAM_MODEL_TYPE"]})  # type: ignore[arg-type]
