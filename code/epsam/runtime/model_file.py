"""One file for a whole trained model (.epsam): safetensors, with a record in JSON among its metadata; nothing executable.

Tensors are called `<part>.<name>`. The file may come from anywhere: nothing in it becomes a path, and it is read with a
schema and with bounds on sizes, types and values.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from safetensors import SafetensorError, safe_open

from epsam.errors import CheckpointError
from epsam.runtime.placeholders import head_of, placeholder
from epsam.runtime.records import Record, explain

if TYPE_CHECKING:
    import torch

SUFFIX = ".epsam"
FORMAT: Literal[1] = 1
KEY = "epsam"
"""Of the record among the metadata of safetensors."""
MAX_BYTES = 8 * 2**30
MAX_HEADER = 16 * 2**20
"""Bytes of names, shapes and record together."""
DTYPES = ("F16", "BF16", "F32", "F64", "I32", "I64")
Part = Literal["classifier", "decoder", "student", "sam"]
PARTS: tuple[Part, ...] = ("classifier", "decoder", "student", "sam")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Short = Annotated[str, Field(max_length=200)]


class ModelRecord(Record):
    """What a model file says of its weights."""

    format: Literal[1]
    name: Short
    """Of the run that trained it."""
    settings: dict[str, Any]
    """With dotted keys, without paths; checked as all settings are."""
    mpp: Annotated[float, Field(gt=0, lt=1000)] | None
    """um per px of the training patches; None: not known."""
    encoder: Short
    """Hash of the SAM encoder that the decoder was trained on; empty without a decoder."""
    sam_sha256: Sha256 | None
    """Of the published weights of SAM, which are not in the file; None where they are, or are not needed."""
    versions: dict[Short, Short]
    """Of the program and of packages, when the model was trained or, where that is not known, exported."""
    training: list[dict[Short, Short]]
    """Rows of metrics.csv."""


@dataclass(frozen=True)
class PackedWeights:
    """One part of a model file, in place of a checkpoint's path."""

    file: Path
    part: Part

    @property
    def name(self) -> str:
        return self.file.name

    def is_file(self) -> bool:
        return self.file.is_file()

    def __str__(self) -> str:
        return f"{self.file} ({self.part})"


WeightsSource = Path | PackedWeights
"""Where weights are: a checkpoint, with its settings beside it, or a part of a model file."""


def read_model_record(file: Path) -> ModelRecord:
    """The record of a model file, whose parts and types of tensors are checked too.

    Raises CheckpointError when it is missing, damaged, foreign, of another format, or larger than the bounds.
    """
    with _opened(file) as (content, record):
        for name in content.keys():  # noqa: SIM118  it is no dictionary
            if name.partition(".")[0] not in PARTS or content.get_slice(name).get_dtype() not in DTYPES:
                raise CheckpointError(f"{file}: its tensor {name[:60]!r} is none of a model; get the file again")
    return record


def parts_of(file: Path) -> list[Part]:
    """The parts that a model file has."""
    with _opened(file) as (content, _):
        found = {name.partition(".")[0] for name in content.keys()}  # noqa: SIM118
    return [part for part in PARTS if part in found]


def load_packed(source: PackedWeights) -> "dict[str, torch.Tensor]":
    """The tensors of a part, by the names that they have in a checkpoint."""
    read_model_record(source.file)
    prefix = f"{source.part}."
    with _opened(source.file) as (content, _):
        names = [name for name in content.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): content.get_tensor(name).clone() for name in names}


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, ModelRecord]]:
    _check_size(file)
    try:
        with safe_open(file, framework="pt") as content:
            yield content, _parse(file, content.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: is no model file, or is cut off or damaged ({explain(error)}); get it again, or make it with "
            "`epsam export-model`"
        ) from None


def _check_size(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such model file; `epsam export-model NAME FILE` makes one")
    head = head_of(file)
    if what := placeholder(head):
        raise CheckpointError(f"{file}: is {what}")
    header = int.from_bytes(head[:8], "little")
    if header > MAX_HEADER or file.stat().st_size > MAX_BYTES:
        raise CheckpointError(
            f"{file}: is no model file of `epsam export-model`, or larger than any (its header says {header} bytes)"
        )


def _parse(file: Path, metadata: dict[str, str]) -> ModelRecord:
    if KEY not in metadata:
        raise CheckpointError(f"{file}: is a safetensors file, but none of `epsam export-model`")
    try:
        value = json.loads(metadata[KEY])
        if isinstance(value, dict) and value.get("format") != FORMAT:
            raise CheckpointError(
                f"{file}: is of format {str(value.get('format'))[:20]}, this program reads {FORMAT}; update the one "
                "that is older"
            )
        return ModelRecord.model_validate(value)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: its record is not that of a model ({explain(error)}); get the file again"
        ) from None
