"""Tasks on the workers of a Dask scheduler, where the environment names one, else in processes of this machine."""

import asyncio
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2

from epsam import __version__
from epsam.errors import DataError, SlideError
from epsam.runtime.allocator import keep_windows
from epsam.runtime.failures import reason_of
from epsam.runtime.log import logger
from epsam.runtime.workers import DIED, run_tasks

VARIABLE = "DASK_SCHEDULER_ADDRESS"
ADDRESS = re.compile(r"((tcp|tls|ucx|wss?)://)?[A-Za-z0-9._-]+:[0-9]{1,5}|((tcp|tls)://)\[[0-9a-fA-F:]+\]:[0-9]{1,5}")
CONNECT_S = 20
WORKERS_S = 120
"""Without any worker for so long, the run ends: those that are queued somewhere may take minutes to come."""
POLL_S = 5
INSTALL = ".venv/bin/pip install './code[cluster]'"

Task = TypeVar("Task")
Result = TypeVar("Result")
_TURN = threading.Lock()
"""Readers of slides are used by one thread of a process at a time."""


def run_shared_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, shared: Path
) -> Iterator[tuple[Task, Result | SlideError]]:
    """As `run_tasks`; on the workers of the Dask scheduler that DASK_SCHEDULER_ADDRESS names, where it is set.

    shared: a folder that the workers must see at the same path. A task during which a worker dies is tried as often as the
    scheduler does (its setting allowed-failures), then once more alone, and then gives a SlideError. Raises DataError for a
    scheduler that cannot be used.
    """
    address = os.environ.get(VARIABLE, "").strip()
    if not address:
        yield from run_tasks(function, tasks, workers)
        return
    client = _connect(address)
    try:
        shared.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=shared, prefix=".dask.", suffix=".epsam-tmp") as marker:
            call = partial(_on_worker, function, __version__, os.getcwd(), Path(marker.name).resolve())  # noqa: PTH109
            lost = yield from _run(client, call, list(tasks))
            for task in lost:  # others may have been waiting at a worker that died
                if (yield from _run(client, call, [task])):
                    yield task, SlideError(DIED)
    finally:
        client.close()


def _connect(address: str) -> Any:
    """A client of the scheduler; DataError in one line where there is none that can be used."""
    if not ADDRESS.fullmatch(address):
        raise DataError(f"{VARIABLE}={address} is no address; give it as tcp://HOST:PORT, or unset it")
    try:
        from distributed import Client
    except ImportError:
        raise DataError(
            f"{VARIABLE} is set, but the package distributed is not installed: {INSTALL}, or unset it"
        ) from None
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        raise DataError(f"{VARIABLE}={address}: no Dask scheduler answers there ({reason_of(error)})") from None
    try:
        client.wait_for_workers(1, timeout=WORKERS_S)
        client.get_versions(check=True)
    except (OSError, asyncio.TimeoutError):
        client.close()
        raise _without_workers(address) from None
    except ValueError as error:
        client.close()
        raise DataError(
            f"{VARIABLE}={address}: scheduler, workers and this environment hold different versions of Python or Dask "
            f"({reason_of(error)}); start them from one environment"
        ) from None
    logger.info(f"slides are read by {len(client.scheduler_info()['workers'])} workers of the Dask scheduler {address}")
    return client


def _run(
    client: Any, call: Callable[[Task], Result], tasks: list[Task]
) -> Generator[tuple[Task, Result | SlideError], None, list[Task]]:
    """Yield results as they come; return the tasks whose workers died."""
    from distributed import KilledWorker, wait

    waiting = {client.submit(call, task, pure=False): task for task in tasks}
    lost, alone = [], 0.0
    while waiting:
        try:
            with client.as_current():
                done = wait(list(waiting), timeout=POLL_S, return_when="FIRST_COMPLETED").done
        except asyncio.TimeoutError:
            alone = 0.0 if client.scheduler_info()["workers"] else alone + POLL_S
            if alone >= WORKERS_S:
                raise _without_workers(client.scheduler.address) from None
            continue
        for future in done:
            task, error = waiting.pop(future), future.exception()
            if isinstance(error, KilledWorker):
                lost.append(task)
            elif isinstance(error, MemoryError):
                yield task, SlideError(reason_of(error))
            elif isinstance(error, ImportError):
                raise DataError(f"a Dask worker lacks packages ({reason_of(error)}); start it from this environment")
            elif error is not None:
                raise error
            else:
                yield task, future.result()
            future.release()
    return lost


def _without_workers(address: str) -> DataError:
    return DataError(
        f"the Dask scheduler {address} has had no worker for {WORKERS_S} s; start some and run the stage again: what was "
        "finished is kept"
    )


def _on_worker(function: Callable[[Task], Result], version: str, place: str, marker: Path, task: Task) -> Result:
    """At a worker: `function(task)` in the folder `place`, from which paths count."""
    host = socket.gethostname()
    if version != __version__:
        raise DataError(f"a Dask worker on {host} has epsam {__version__}, this run {version}: start it again")
    if not marker.is_file():
        raise DataError(f"a Dask worker on {host} does not see {marker.parent}: all need one disk, at the same path")
    with _TURN:
        cv2.setNumThreads(1)
        keep_windows()
        before = Path.cwd()
        os.chdir(place)
        try:
            return function(task)
        finally:
            os.chdir(before)
