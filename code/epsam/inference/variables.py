"""The environment variables of infer.sh: one that is nearly one of them was meant to be it."""

import difflib
from collections.abc import Mapping

from epsam.errors import ConfigError

VARIABLES = (
    "TEST_DATASET_DIR",
    "RESNET_CHECKPOINT",
    "SAM_MODEL_TYPE",
    "SAM_CHECKPOINT",
    "SAM_DECODER_CHECKPOINT",
    "STUDENT_CHECKPOINT",
    "OUTPUT_DIR",
)
SIMILARITY = 0.85
"""Of difflib, from 0 to 1, above which a name is taken for a misspelt one."""


def check_variables(environment: Mapping[str, str]) -> None:
    """Raise ConfigError for a variable whose name is nearly one of VARIABLES that is not set itself."""
    unset = [name for name in VARIABLES if not environment.get(name)]
    for name in sorted(set(environment) - set(VARIABLES)):
        if near := difflib.get_close_matches(name, unset, 1, SIMILARITY):
            raise ConfigError(f"the environment variable {name} is not one of ./infer.sh; did you mean {near[0]}?")
