"""state/patches.jsonl: what was predicted of each patch, so that a second call goes on after it."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from epsam.errors import DataError
from epsam.runtime.records import PlainName, Record, explain, parse_record


class PatchRow(Record):
    """A line of state/patches.jsonl."""

    patch: PlainName
    image: str
    """SHA-256 of its file."""
    classifier_probability: Annotated[float, Field(ge=0, le=1)] | None
    """None without a classifier."""
    segmented: Literal[0, 1]
    tumour_fraction: Annotated[float, Field(ge=0, le=1)]


class PatchRows:
    """Rows of finished patches, one JSON object a line; a line that an interruption cut short does not count."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            data = path.read_bytes()
            complete = data[: data.rfind(b"\n") + 1]
            for number, line in enumerate(complete.splitlines(), 1):
                row = self._parse(line, number)
                self.rows[row.patch] = row.model_dump()
            if complete != data:
                os.truncate(path, len(complete))

    def _parse(self, line: bytes, number: int) -> PatchRow:
        try:
            return parse_record(line.decode(), PatchRow)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path}, line {number}: is not the record of a patch ({explain(error)}); delete the "
                "file, and the patches are predicted again"
            ) from None

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Record patches whose files are written."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
        self.rows |= {row["patch"]: row for row in rows}
