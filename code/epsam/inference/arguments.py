"""The words after ./infer.sh: which are slides or folders, and which are settings."""

import re
from collections.abc import Sequence
from pathlib import Path

from epsam.errors import DataError
from epsam.runtime.user_paths import from_user

SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


def split_arguments(words: Sequence[str], names_of_models: Sequence[str] = ()) -> tuple[list[Path], tuple[str, ...]]:
    """Slides and folders, from where the user stands, and `section.key=value` overrides.

    Raises DataError for a word that is neither; `names_of_models` are those that can be given to --model.
    """
    inputs, overrides = [], []
    for word in words:
        path = from_user(word)
        if path.exists():
            inputs.append(path)
        elif SETTING.match(word):
            overrides.append(word)
        else:
            hint = f"; did you mean --model {word}?" if word in names_of_models else ""
            raise DataError(f"{path}: no such file or folder; give a slide, a folder of slides or a patch folder{hint}")
    return inputs, tuple(overrides)
