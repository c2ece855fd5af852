"""The folder of predictions where none is named: one for each input, in which no call meets results of another."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epsam.errors import DataError
from epsam.inference.output import OutputRecord, read_output_record
from epsam.runtime.failures import printable
from epsam.runtime.records import as_plain_values
from epsam.slides.formats import slide_name

MAX_LABEL = 80
"""Characters of an input's name in the name of its folder."""


def default_label(inputs: Sequence[Path]) -> str:
    """A folder's name for predictions of `inputs`: that of the slide or folder, or of the first and how many follow."""
    first = inputs[0].resolve()
    name = printable(first.name if first.is_dir() else slide_name(first)).replace("\\", "_")
    label = name[:MAX_LABEL].lstrip(".") or "slides"
    return label if len(inputs) == 1 else f"{label}_and_{len(inputs) - 1}_more"


def choose_output(base: Path, inputs: Sequence[str], signature: Mapping[str, Any], *, fresh: bool) -> Path:
    """`base`, or `base`-2, -3... : the first that is free or holds predictions of the same inputs under `signature`.

    With `fresh` the first of the same inputs, whatever the signature, as it is to be replaced. `inputs`: full paths.
    """
    wanted = as_plain_values(signature)
    for number in itertools.count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not _is_used(folder):
            return folder
        record = _record_of(folder)
        if record is not None and record.inputs == list(inputs) and (fresh or record.signature == wanted):
            return folder
    raise AssertionError("unreachable")


def _is_used(folder: Path) -> bool:
    """Whether anything but the lock of a call that wrote nothing is there."""
    if (folder / "state" / "inference.json").is_file() or folder.is_symlink() or folder.is_file():
        return True
    return folder.is_dir() and any(path.name != "state" for path in folder.iterdir())


def _record_of(folder: Path) -> OutputRecord | None:
    try:
        return read_output_record(folder)
    except DataError:
        return None
