"""Claims: which of several jobs, on any machines that share a folder, works on what.

A claim is a file `<name>.<number>` that one process alone can create (O_EXCL, which network disks without flock keep to as
well). That of a dead process is followed by one of the next number, so of two jobs that find it only one takes over.
On the same machine a holder is dead when its process is; on another one when its claim was not touched for STALE_S seconds
by the clock of the disk and stays so while it is watched, as with the lock of a run: nothing else can be seen from here.
"""

import contextlib
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from epsam.errors import DataError, StateError
from epsam.runs.lock import BEAT_S, STALE_S, LockRecord, living_others, record_of, seconds_since_touch
from epsam.runtime.log import logger
from epsam.runtime.records import read_record

CLAIM = re.compile(r"(?P<name>.+)\.(?P<number>[0-9]{1,9})", re.DOTALL)
POLL_S = 0.2


class Holder(Enum):
    """What is known of the process that holds a claim."""

    LIVES = 1
    UNKNOWN = 2
    """On another machine, and not watched for long enough."""
    GONE = 3


class Claims:
    """The claims of this process among those in `folder`, kept alive by heartbeats while it is entered."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._mine = record_of(os.getpid())
        self._held: dict[str, Path] = {}
        self._watched: dict[Path, tuple[int, float, bool]] = {}
        """Claims of other machines: last touch, since when it is known (monotonic), whether there was one before."""
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Claims":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._heart.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Claim `name`; False while another process holds it, or may hold it."""
        before = self._claims(name)
        if any(self._holder(path) != Holder.GONE for path in before):
            return False
        path = self._folder / f"{name}.{max((_number(path) for path in before), default=-1) + 1}"
        if not self._create(path):
            return False
        # Another job may have found nothing and begun at 0 after this one had looked.
        if any(self._holder(other) != Holder.GONE for other in self._claims(name) if other != path):
            path.unlink(missing_ok=True)
            return False
        self._held[name] = path
        for other in before:
            other.unlink(missing_ok=True)
        return True

    def release(self, name: str) -> None:
        """Give up a claim that this process holds."""
        self._held.pop(name).unlink(missing_ok=True)

    def is_held(self, name: str) -> bool:
        """Whether another process is known to work on `name`."""
        return any(self._holder(path) == Holder.LIVES for path in self._claims(name))

    def mine(self, prefix: str) -> str:
        """Name of the first claim of this process that begins so."""
        return next(name for name in self._held if name.startswith(prefix))

    def now(self) -> float:
        """The time by the clock of the disk, which may be another machine's."""
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".now.", suffix=".epsam-tmp") as probe:
            return os.fstat(probe.fileno()).st_mtime

    @contextlib.contextmanager
    def hold(self, name: str, what: Path) -> Iterator[None]:
        """Claim `name` for a moment, waiting for others that do; raises StateError, which names `what`, if that takes long."""
        until = time.monotonic() + 2 * STALE_S
        while not self.take(name):
            if time.monotonic() > until:
                raise StateError(
                    f"{what} is in use by {self.describe(name)}. Wait for it or stop it; if it is gone, delete {self._folder}"
                )
            time.sleep(POLL_S)
        try:
            yield
        finally:
            self.release(name)

    def others(self, prefix: str) -> list[str]:
        """Names of claims that begin so and are held, or may be held, by other processes; those of dead ones are deleted."""
        found = []
        for path in self._all():
            if not path.name.startswith(prefix) or path in self._held.values():
                continue
            while (holder := self._holder(path)) == Holder.UNKNOWN and abs(seconds_since_touch(path)) >= STALE_S:
                time.sleep(POLL_S)
            if holder == Holder.GONE:
                path.unlink(missing_ok=True)
            else:
                found.append(path.name.rpartition(".")[0])
        return found

    def describe(self, name: str) -> str:
        """The holder of `name` for a message: process and machine."""
        for path in reversed(self._claims(name)):
            if record := _read(path):
                return f"process {max(map(int, record.processes), default=0)} on {record.host}"
        return "another job"

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if CLAIM.fullmatch(path.name))

    def _claims(self, name: str) -> list[Path]:
        return [path for path in self._all() if path.name.rpartition(".")[0] == name]

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(self._mine.model_dump_json())
        return True

    def _holder(self, path: Path) -> Holder:
        if path in self._held.values():
            return Holder.LIVES
        record = _read(path)
        if record is not None and record.shares_processes_with(self._mine):
            return Holder.LIVES if living_others(record, self._mine) else Holder.GONE
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:
            return Holder.GONE
        return self._watch(path, touched)

    def _watch(self, path: Path, touched: int) -> Holder:
        """Judge by heartbeats: a claim of another machine, or one that is being written."""
        now = time.monotonic()
        before, since, moved = self._watched.setdefault(path, (touched, now, False))
        if touched != before:
            self._watched[path] = (touched, now, True)
            return Holder.LIVES
        if moved and now - since < STALE_S:
            return Holder.LIVES
        if abs(seconds_since_touch(path)) < STALE_S or now - since < 2 * BEAT_S:
            return Holder.UNKNOWN
        logger.warning(f"{path}: its job gave no heartbeat for {STALE_S:.0f} s and is taken for gone")
        return Holder.GONE

    def _beat(self) -> None:
        """Touch the claims until the end; a process one of whose claims was taken over in the meantime is stopped."""
        while not self._stop.wait(BEAT_S):
            for name, path in list(self._held.items()):
                if not path.exists() and self._held.get(name) == path and self._claims(name):
                    logger.error(f"{path} was taken over by another job: this one stops")
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                with contextlib.suppress(OSError):  # a disk that is away for a while: the next beat may reach it
                    os.utime(path, follow_symlinks=False)


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _read(path: Path) -> LockRecord | None:
    """Whose claim it is; None while it is written, when it is gone, and for a damaged one."""
    try:
        return read_record(path, LockRecord, "delete it")
    except DataError:
        return None
