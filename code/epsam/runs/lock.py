"""The lock of a run: who is at work in it."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from epsam.errors import DataError, StateError
from epsam.runtime.log import logger
from epsam.runtime.records import Record, read_record, write_record

OWNER = "EPSAM_OWNER_PID"
"""Environment variable: the process that holds the lock for a series of stages (train.sh sets it to itself)."""


BEAT_S = 15.0
"""Seconds between two heartbeats."""


STALE_S = 180.0
"""Seconds without a heartbeat after which a holder that cannot be seen otherwise is watched, and then taken for gone."""


PATIENCE_S = 45.0
"""Seconds to wait for a guard that is held: by another start that looks at the lock, or by children of a dead stage."""


class LockRecord(Record):
    """The file `lock`."""

    host: str
    boot: str
    """Number of this start of the machine, empty where the system has none."""
    namespace: str
    """Of process numbers, as Linux names it; empty elsewhere."""
    processes: dict[Annotated[str, Field(pattern="^[0-9]{1,10}$")], str]
    """Process numbers with their starts, see `start_of`."""

    def shares_processes_with(self, other: "LockRecord") -> bool:
        """Whether process numbers of both mean the same."""
        return (self.boot, self.namespace, self.boot or self.host) == (
            other.boot,
            other.namespace,
            other.boot or other.host,
        )


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold `runs/<name>/lock`; raise StateError while another holder lives.

    The lock names this process and its owner: the process that EPSAM_OWNER_PID names, or itself. A lock of one owner
    is shared by the stages it starts one after the other, and stays until `release` or until the owner is gone.
    """
    path = run / "lock"
    mine = record_of(int(os.environ.get(OWNER, os.getpid())), os.getpid())
    guard = _take(path, mine)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, mine, stop), daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        if OWNER not in os.environ:
            path.unlink(missing_ok=True)
        _close_guard(guard)


@contextlib.contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keep the lock that stages of this process take, from the first to the last, as train.sh does for its stages."""
    if OWNER in os.environ:  # the script that started this process holds it
        yield
        return
    os.environ[OWNER] = str(os.getpid())
    try:
        yield
    finally:
        release(run)
        del os.environ[OWNER]


def release(run: Path) -> None:
    """Delete the lock of this owner, unless one of its stages still works."""
    path, owner = run / "lock", os.environ.get(OWNER, "")
    if not path.is_file():
        return
    guard = _open_guard(path)
    try:
        holder = _holder(path)
        if (
            _try_flock(guard)
            and holder is not None
            and owner in holder.processes
            and not living_others(holder, record_of(int(owner), os.getpid()))
        ):
            path.unlink()
    finally:
        _close_guard(guard)


def record_of(*pids: int) -> LockRecord:
    """These processes of this machine."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return LockRecord(
        host=socket.gethostname(),
        boot=boot.read_text().strip() if boot.is_file() else "",
        namespace=str(namespace.readlink()) if namespace.is_symlink() else "",
        processes={str(pid): start_of(pid) for pid in pids},
    )


def _take(path: Path, mine: LockRecord) -> int:
    """Write the lock and give the guard's file descriptor, whose flock is held until it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    guard = _open_guard(path)
    with contextlib.ExitStack() as on_error:
        on_error.callback(_close_guard, guard)
        _wait_for_guard(guard, path, mine)
        holder = _holder(path)
        if holder is not None and (who := _living(holder, mine, path)):
            raise _in_use(path, who, None if holder.shares_processes_with(mine) else seconds_since_touch(path))
        write_record(path, mine)
        on_error.pop_all()
    return guard


def _open_guard(path: Path) -> int:
    guard = path.parent / ".lock_guard"
    try:
        return os.open(guard, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        raise StateError(f"{guard} is a link, which this program never makes; delete it") from None


def _try_flock(guard: int) -> bool:
    """False when another process holds the guard; True too where the file system knows no flock."""
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network disks: process numbers and the heartbeat are left
        return True
    return True


def _close_guard(guard: int) -> None:
    """End the flock and close the file: child processes may have it open too."""
    with contextlib.suppress(OSError):  # a file system without flocks
        fcntl.flock(guard, fcntl.LOCK_UN)
    os.close(guard)


def _wait_for_guard(guard: int, path: Path, mine: LockRecord) -> None:
    until = time.monotonic() + PATIENCE_S
    while not _try_flock(guard):
        holder = _holder(path)
        if holder is not None and holder.shares_processes_with(mine) and (others := living_others(holder, mine)):
            raise _in_use(path, f"process {others[-1]} on {holder.host}")
        if holder is not None and not holder.shares_processes_with(mine) and abs(seconds_since_touch(path)) < STALE_S:
            raise _in_use(path, elsewhere(holder), seconds_since_touch(path))
        if time.monotonic() > until:
            raise _in_use(path, f"another process on {holder.host if holder else 'this machine'}")
        time.sleep(0.1)


def _in_use(path: Path, who: str, age: float | None = None) -> StateError:
    """age: seconds since the last heartbeat, for a holder whose processes cannot be seen."""
    if age is None:
        return StateError(f"{path.parent} is in use by {who}. Wait for it or stop it; if it is gone, delete {path}")
    return StateError(
        f"{path.parent} is in use by {who}. Wait for it or stop it; if it is gone (its machine or container was "
        f"restarted, say), run again in {max(1, round(STALE_S - abs(age)))} s, when its lock counts as stale, or delete "
        f"{path}"
    )


def holder_of(run: Path) -> str:
    """Who holds the lock of `run`, not counting the owner of this process; empty when nobody does. Changes nothing."""
    path = run / "lock"
    mine = record_of(int(os.environ.get(OWNER, os.getpid())), os.getpid())
    if (holder := _holder(path)) is None:
        return ""
    if holder.shares_processes_with(mine):
        others = living_others(holder, mine)
        return f"process {others[-1]} on {holder.host}" if others else ""
    return elsewhere(holder) if abs(seconds_since_touch(path)) < STALE_S else ""


def _living(holder: LockRecord, mine: LockRecord, path: Path) -> str:
    """Who holds the lock, empty when nobody does any more."""
    if holder.shares_processes_with(mine):
        others = living_others(holder, mine)
        return f"process {others[-1]} on {holder.host}" if others else ""
    who = elsewhere(holder)
    if _has_heartbeat(path):
        return f"{who}, whose last heartbeat was less than {STALE_S:.0f} s ago"
    logger.warning(f"{path}: {who} gave no heartbeat for {STALE_S:.0f} s and is taken for gone; this run takes over")
    return ""


def elsewhere(holder: LockRecord) -> str:
    """A holder whose processes cannot be seen from here, for messages."""
    return f"process {max(map(int, holder.processes), default=0)} on {holder.host} (another machine or container)"


def living_others(holder: LockRecord, mine: LockRecord) -> list[int]:
    """Processes of a lock of this machine that live and are not ours."""
    return sorted(
        int(pid)
        for pid, start in holder.processes.items() - mine.processes.items()
        if start and start_of(int(pid)) == start
    )


def _has_heartbeat(path: Path) -> bool:
    """Whether the lock was touched lately, by the clock of the file system that holds it.

    That clock may have been set since: what looks stale is watched for two beats before it counts as such.
    """
    age = seconds_since_touch(path)
    if abs(age) < STALE_S:
        return True
    logger.info(f"{path}: its last heartbeat is {abs(age):.0f} s off; watching it for {2 * BEAT_S:.0f} s")
    before = path.stat().st_mtime_ns
    time.sleep(2 * BEAT_S)
    return not path.is_file() or path.stat().st_mtime_ns != before


def seconds_since_touch(path: Path) -> float:
    """Seconds since the lock was touched, by the clock of the file system that holds it; 0 when it is gone."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".lock.", suffix=".epsam-tmp") as probe:
        return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime if path.is_file() else 0.0


def _beat(path: Path, mine: LockRecord, stop: threading.Event) -> None:
    """Touch the lock until `stop`; a process whose lock another one took over in the meantime is stopped."""
    while not stop.wait(BEAT_S):
        holder = _holder(path)
        if holder is not None and not holder.processes.keys() & mine.processes.keys():
            logger.error(f"{path} was taken over by a process on {holder.host}: this one stops")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        with contextlib.suppress(OSError):  # a disk that is away for a while: the next beat may reach it
            os.utime(path, follow_symlinks=False)


def _holder(path: Path) -> LockRecord | None:
    """The lock; None when it is not there or damaged, e.g. by a full disk."""
    try:
        return read_record(path, LockRecord, "delete it") if path.is_file() else None
    except DataError:
        return None


def start_of(pid: int) -> str:
    """When a process started, empty when it is gone or dead but not yet reaped by its parent.

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
