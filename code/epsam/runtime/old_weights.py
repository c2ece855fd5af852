"""Trained weights are never deleted or written over: a new training renames what has its file name, with a number."""

import shutil
from pathlib import Path

from epsam.runtime.files import atomic
from epsam.runtime.log import logger
from epsam.runtime.sidecar import sidecar_path


def keep_old_weights(path: Path) -> None:
    """Rename weights, if there are any, to `<stem>.<n><suffix>`, n from 1, with the settings beside them; logs it.

    The settings are copied first and removed last: a process killed in between leaves no weights without them.
    """
    if not path.is_file():
        return
    numbered = _free_name(path)
    settings = sidecar_path(path)
    if settings.is_file():
        with atomic(sidecar_path(numbered)) as temporary:
            shutil.copyfile(settings, temporary)
    path.rename(numbered)
    settings.unlink(missing_ok=True)
    logger.warning(f"{path} is kept as {numbered.name}: new weights take its name")


def _free_name(path: Path) -> Path:
    number = 1
    while True:
        numbered = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not numbered.exists() and not sidecar_path(numbered).exists():
            return numbered
        number += 1
