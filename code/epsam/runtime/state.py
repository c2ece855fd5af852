"""What a run knows of itself: which stage is done, under which settings, and who is at work in it.

`runs/<name>/state/<stage>.json` is written when a stage starts and again when it is done. Stages go on where
they stopped from files that are whole; this record keeps them from going on over something that has changed.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from epsam.errors import StateError
from epsam.runtime.files import read_json, write_json

OWNER = "EPSAM_OWNER_PID"
"""Environment variable: the process that holds the lock for a series of stages (train.sh sets it to itself)."""


def read_state(folder: Path, stage: str) -> dict[str, Any] | None:
    """The record of a stage, or None when it never started."""
    path = folder / f"{stage}.json"
    return read_json(path) if path.is_file() else None


def check_signature(stage: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise StateError naming every difference between the settings a stage was started with and those now."""
    changed = [
        f"{key} was {saved.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise StateError(
            f"stage {stage} was run with something else: {'; '.join(changed[:4])}{more}. "
            f"Start again at the first stage that changed (--from {stage} or earlier), all anew (--fresh), "
            "or give the run another name"
        )


def write_started(folder: Path, stage: str, signature: Mapping[str, Any]) -> None:
    """Note that a stage is under way."""
    write_json(folder / f"{stage}.json", {"stage": stage, "done": False, "signature": dict(signature)})


def write_done(folder: Path, stage: str, signature: Mapping[str, Any], **figures: Any) -> None:
    """Note that a stage is done, with its seconds, memory and versions."""
    record = {"stage": stage, "done": True, "signature": dict(signature)} | figures
    write_json(folder / f"{stage}.json", record)


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold `runs/<name>/lock` with process and host; raise StateError while another live process holds it.

    A lock of a process of this host that is gone is stale and taken over. A lock taken by the process that
    EPSAM_OWNER_PID names is shared by the stages it starts, and stays until that process is gone.
    """
    owner = int(os.environ.get(OWNER, os.getpid()))
    mine = _identity(owner)
    path = run / "lock"
    _take(path, mine)
    try:
        yield
    finally:
        if OWNER not in os.environ:
            path.unlink(missing_ok=True)


def _take(path: Path, mine: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / ".lock_guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        holder = _holder(path)
        if holder is not None and holder != mine and _is_alive(holder):
            raise StateError(
                f"{path.parent} is in use by process {holder['pid']} on {holder['host']}. Wait for it or stop it; "
                f"if it is gone for good, delete {path}"
            )
        write_json(path, mine)


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return {key: holder[key] for key in ("pid", "host", "process_started")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _identity(pid: int) -> dict[str, Any]:
    return {"pid": pid, "host": socket.gethostname(), "process_started": _start_of(pid)}


def _start_of(pid: int) -> str:
    """When a process started, on a scale that setting the clock does not move where the system has one."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.is_file():
        return stat.read_text().rpartition(")")[2].split()[19]
    return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else ""


def _is_alive(holder: Mapping[str, Any]) -> bool:
    """Whether the holder may still be at work; a process of another host is taken to be."""
    if holder["host"] != socket.gethostname():
        return True
    return psutil.pid_exists(holder["pid"]) and _start_of(holder["pid"]) == holder["process_started"]


class Stopwatch:
    """Seconds since it was made, by a clock that is never set back."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._start, 2)
