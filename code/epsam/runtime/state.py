"""What a run knows of itself: which stage is done, under which settings, and who is at work in it.

`runs/<name>/state/<stage>.json` is written when a stage starts and again when it is done. Stages go on where
they stopped from files that are whole; this record keeps them from going on over something that has changed.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from epsam.errors import DataError, StateError
from epsam.runtime.files import read_object, write_json

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal to send when the parent dies."""
OWNER = "EPSAM_OWNER_PID"
"""Environment variable: the process that holds the lock for a series of stages (train.sh sets it to itself)."""


def read_state(folder: Path, stage: str) -> dict[str, Any] | None:
    """The record of a stage, or None when it never started; raises DataError when it is damaged."""
    path = folder / f"{stage}.json"
    if not path.is_file():
        return None
    record = read_object(path)
    if not (isinstance(record.get("signature"), dict) and "done" in record):
        raise DataError(f"{path}: is not the record of a stage; delete it, and the stage runs anew")
    return record


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


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold `runs/<name>/lock`; raise StateError while another live process holds it.

    The lock names this process, its host, and its owner: the process that EPSAM_OWNER_PID names, or itself. It is
    stale, and taken over, when both are gone from this host. A lock of one owner is shared by the stages it starts
    one after the other, and stays until the owner is gone.
    """
    owner = int(os.environ.get(OWNER, os.getpid()))
    path = run / "lock"
    _take(path, {"host": socket.gethostname(), "processes": {str(pid): start_of(pid) for pid in (owner, os.getpid())}})
    try:
        yield
    finally:
        if OWNER not in os.environ:
            path.unlink(missing_ok=True)


def _take(path: Path, mine: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / ".lock_guard").open("w") as guard:
        with contextlib.suppress(OSError):  # some network disks know no locks: then two starts at once may race
            fcntl.flock(guard, fcntl.LOCK_EX)
        host, processes = _holder(path)
        others = processes.items() - mine["processes"].items() if host == mine["host"] else processes.items()
        alive = sorted(int(pid) for pid, start in others if host != mine["host"] or (start and start_of(int(pid)) == start))
        if alive:
            raise StateError(f"{path.parent} is in use by process {alive[-1]} on {host}. Wait for it or stop it; if it "
                             f"is gone for good, delete {path}")
        write_json(path, mine)


def _holder(path: Path) -> tuple[str, dict[str, str]]:
    """Host and processes (with their starts) of a lock; of a lock that is not there or not whole, none."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return holder["host"], {str(int(pid)): start for pid, start in holder["processes"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return "", {}


def start_of(pid: int) -> str:
    """When a process started, empty when it is gone or dead but not yet taken leave of by its parent.

    On a scale that setting the clock does not move, where the system has one.
    """
    if not Path("/proc/self/stat").is_file():
        return _start_by_clock(pid)
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else values[18]


def _start_by_clock(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return ""


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
