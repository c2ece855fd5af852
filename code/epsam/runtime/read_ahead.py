"""Items read by threads ahead of whoever uses them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")

AHEAD = 2
"""Items per thread that are being read or wait to be used: what bounds the memory."""


def read_ahead(read: Callable[[Key], Item], keys: Iterable[Key], threads: int) -> Iterator[Item]:
    """Yield `read(key)` for each key, in order, at most `AHEAD` times `threads` items ahead; 0 threads read none ahead.

    An exception of `read` is raised here, in the place of its item; nothing is read after it. Threads, not worker
    processes: decoding (OpenCV) and copying (NumPy) free the interpreter's lock, and items need no shared memory,
    of which containers have little (64 MB in Docker). `read` computes nothing with torch: each of the threads would
    start a thread per core for it.
    """
    if threads == 0:
        yield from map(read, keys)
        return
    pool = ThreadPoolExecutor(threads, "read_ahead")
    waiting: deque[Future[Item]] = deque()
    try:
        for key in keys:
            waiting.append(pool.submit(read, key))
            if len(waiting) == AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
