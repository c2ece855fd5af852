"""State that is read back from JSON and CSV: checked against a schema, names in it never become paths elsewhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError

from epsam.errors import DataError
from epsam.runtime.files import read_csv, write_text

Model = TypeVar("Model", bound=BaseModel)
RowModel = TypeVar("RowModel", bound="Row")
MAX_SHOWN = 200
"""Characters of a validator's complaint that a message repeats."""


def is_plain(name: object) -> bool:
    """Whether `name` is a file's name alone: no separator, not `.` or `..`, not absolute, no NUL."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\\0")


def _check_plain(name: object) -> object:
    if not is_plain(name):
        raise ValueError(f"{str(name)[:40]!r} is no plain file name")
    return name


PlainName = Annotated[str, PlainValidator(_check_plain)]
"""A file's name, which need not be UTF-8; see `is_plain`."""


class Record(BaseModel):
    """Common behaviour of all records: no unknown keys, no NaN, no conversion between types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def read_record(path: Path, model: type[Model], fix: str) -> Model:
    """Read the JSON file `path` as `model`; DataError names the file, what is wrong and `fix`, what to do."""
    try:
        return parse_record(path.read_text(encoding="utf-8"), model)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not the record that it should be ({explain(error)}); {fix}") from None


def parse_record(text: str, model: type[Model]) -> Model:
    """One JSON object as `model`; raises ValueError or RecursionError when it is none."""
    return model.model_validate(json.loads(text))


class Row(BaseModel):
    """Common behaviour of rows of tables: finite figures; columns that a model does not name are left alone."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


def read_rows(path: Path, model: type[RowModel], fix: str) -> list[RowModel]:
    """Read a CSV table, each row as `model`; empty cells count as left out, and so take the model's default.

    DataError names the file, the line, what is wrong and `fix`, what to do.
    """
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    try:
        rows = read_csv(path, needed)
    except DataError as error:
        raise DataError(f"{error}; {fix}") from None
    return [_as_row(path, number, row, model, fix) for number, row in enumerate(rows, 2)]


def _as_row(path: Path, number: int, row: Mapping[Any, Any], model: type[RowModel], fix: str) -> RowModel:
    try:
        if None in row or None in row.values():
            raise ValueError(f"it does not have {len(row) - (None in row)} cells")
        return model.model_validate_strings({key: cell for key, cell in row.items() if cell})
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {explain(error)}; {fix}") from None


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record as JSON, atomically; names that are not UTF-8 are escaped."""
    write_text(path, json.dumps(record.model_dump(), indent=1, sort_keys=True) + "\n")


def explain(error: Exception) -> str:
    """The first complaint in one short line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        text = f"{'.'.join(str(part)[:40] for part in first['loc']) or 'content'}: {first['msg']}"
    elif isinstance(error, RecursionError):
        text = "nested too deeply"
    else:
        text = str(error)
    return " ".join(text.split())[:MAX_SHOWN]


def as_plain_values(value: Any) -> Any:
    """`value` as JSON gives it back: tuples as lists, for a comparison with what was read."""
    return json.loads(json.dumps(value))
