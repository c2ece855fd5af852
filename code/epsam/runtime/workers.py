"""Tasks in worker processes, so that a reader which crashes takes down its own task and no other."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

import cv2
import psutil

from epsam.errors import DataError, SlideError
from epsam.runtime.allocator import keep_windows
from epsam.runtime.failures import reason_of
from epsam.runtime.log import logger
from epsam.runtime.text import size_text

DIED = (
    "the process that read it died: a crash of the reader, or no memory left; download it again, or try another "
    "slides.reader"
)


READER_BYTES = 2**29
"""Of a process that reads slides: with its libraries, 500 MiB for the tissue mask of a slide of 97,792 x 221,184 px."""

Task = TypeVar("Task")


Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[tuple[Task, Result | SlideError]]:
    """Yield (task, function(task)) as they are done; `function` is defined at the top of a module.

    With no workers it runs in this process. A task whose process dies (a crash in a reader's C code, no memory) gives
    a SlideError in place of a result. Exceptions of `function` end the whole run. Raises DataError when no worker
    process can be started.
    """
    tasks = list(tasks)
    if workers == 0:
        for task in tasks:
            yield task, function(task)
    elif tasks:
        yield from _run_halves(function, tasks, workers)


def affordable(workers: int, bytes_each: int) -> int:
    """As many of `workers` as free memory holds, at least one of them; it is logged where that is fewer."""
    free = psutil.virtual_memory().available
    fitting = max(1, free // bytes_each)
    if workers > fitting:
        logger.info(f"{fitting} in place of {workers} worker processes, as {size_text(free)} of memory is free")
    return min(workers, fitting)


def _run_halves(
    function: Callable[[Task], Result], tasks: list[Task], workers: int
) -> Iterator[tuple[Task, Result | SlideError]]:
    """Run a pool; if one of its processes dies, halve what was not done until the failing task is alone."""
    lost = yield from _run_pool(function, tasks, workers)
    if lost and len(tasks) == 1:
        yield tasks[0], SlideError(DIED)
    elif lost:
        middle = (len(lost) + 1) // 2
        for half in filter(None, (lost[:middle], lost[middle:])):
            yield from _run_halves(function, half, workers)


def _run_pool(
    function: Callable[[Task], Result], tasks: list[Task], workers: int
) -> Generator[tuple[Task, Result | SlideError], None, list[Task]]:
    """Yield results; return the tasks that were not done when a process of the pool died."""
    # Spawned, not forked: readers keep open files and threads that do not survive a fork.
    try:
        pool = ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn"), prepare)
    except OSError as error:  # no /dev/shm, in which their locks lie
        raise DataError(f"worker processes cannot be started ({error.strerror}: /dev/shm?); set workers=0") from None
    lost: list[Task] = []
    try:
        _start(pool, min(workers, len(tasks)))
        futures: dict[Future, Task] = {}
        for task in tasks:
            try:
                futures[pool.submit(function, task)] = task
            except BrokenProcessPool:
                lost.append(task)
        for future in as_completed(futures):
            try:
                result: Result | SlideError = future.result()
            except BrokenProcessPool:
                lost.append(futures[future])
                continue
            except MemoryError as error:  # while the task or its result was handed over
                result = SlideError(reason_of(error))
            yield futures[future], result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return lost


def _start(pool: ProcessPoolExecutor, workers: int) -> None:
    """All processes before the first task, so that no task is blamed for processes that cannot even be started.

    And because a process that the pool starts for a later task, just while it takes down the others after a crash, is
    never told to end: the pool would wait for it for ever.
    """
    try:
        for started in [pool.submit(os.getpid) for _ in range(workers)]:
            started.result()
    except BrokenProcessPool:
        raise cannot_start() from None


def cannot_start() -> DataError:
    """The error of a process that ends before it has begun."""
    return DataError(
        "worker processes cannot be started: there is no memory left (preprocess needs none with workers=0), or a "
        'script calls this outside of `if __name__ == "__main__":`'
    )


def prepare() -> None:
    """In each worker: one thread of OpenCV, leave Ctrl-C to the parent, and end when the parent is gone."""
    cv2.setNumThreads(1)
    keep_windows()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)
