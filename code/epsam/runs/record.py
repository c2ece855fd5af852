"""Records of stages: settings and data a stage was run with, and whether it is done."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, NonNegativeFloat

from epsam.errors import StateError
from epsam.runs.lock import OWNER, start_of
from epsam.runtime.files import write_json
from epsam.runtime.records import Record, read_record
from epsam.runtime.text import listed

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal to send when the parent dies."""


class StageRecord(Record):
    """state/<stage>.json; the figures of a stage that is done, e.g. its seconds, come beside these."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | int | str]

    stage: str
    done: bool
    signature: dict[str, Any]
    seconds: NonNegativeFloat = 0.0
    peak_memory_mib: NonNegativeFloat = 0.0
    device: str = ""


def read_state(folder: Path, stage: str) -> dict[str, Any] | None:
    """The record of a stage, or None when it never started; raises DataError when it is damaged."""
    path = folder / f"{stage}.json"
    if not path.is_file():
        return None
    return read_record(path, StageRecord, "delete it, and the stage runs again").model_dump()


def check_signature(stage: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise StateError naming every difference between the settings a stage was started with and those now."""
    changed = [
        f"{key} was {saved.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if changed:
        raise StateError(
            f"stage {stage} was run with something else: {listed(changed, 4, '; ')}. "
            f"Start again at the first stage that changed (--from {stage} or earlier), start over (--fresh), "
            "or give the run another name"
        )


def write_started(folder: Path, stage: str, signature: Mapping[str, Any]) -> None:
    """Note that a stage is under way."""
    write_json(folder / f"{stage}.json", {"stage": stage, "done": False, "signature": dict(signature)})


def write_done(folder: Path, stage: str, signature: Mapping[str, Any], **figures: Any) -> None:
    """Note that a stage is done, with its seconds, memory and versions."""
    record = {"stage": stage, "done": True, "signature": dict(signature)} | figures
    write_json(folder / f"{stage}.json", record)


def end_with_owner() -> None:
    """Have this process stopped, as by SIGTERM, when the script that started it is killed (Linux alone knows how)."""
    owner = int(os.environ.get(OWNER, 0))
    if not owner or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if not start_of(owner):
        signal.raise_signal(signal.SIGTERM)


class Stopwatch:
    """Seconds since it was made, by a clock that is never set back."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._start, 2)
