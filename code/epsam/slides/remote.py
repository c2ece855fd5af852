"""A slide that a process of its own reads, so that a reader which crashes ends that process and nothing else."""

import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from epsam.errors import SlideError
from epsam.runtime.failures import guard
from epsam.runtime.workers import DIED, cannot_start, prepare
from epsam.slides.openslide import bounds_origin
from epsam.slides.reader import open_slide
from epsam.slides.slide import Slide

SECONDS_TO_END = 5


@dataclass(frozen=True)
class _About:
    """What the process says of the slide it opened."""

    reader: str
    reader_version: str
    vendor: str
    level_sizes: tuple[tuple[int, int], ...]
    mpp: tuple[float, float] | None
    origin: tuple[int, int]


class RemoteSlide(Slide):
    """A slide as `open_slide` gives it, read in another process; one thread after the other may read.

    Pixels come through a pipe: shared memory is small in containers. Raises SlideError, on opening and reading, as the
    reader does, and when its process dies; DataError when no process can be started.
    """

    def __init__(self, path: Path, backend: str = "auto", asap_path: Path | None = None):
        super().__init__(path)
        self._how = (backend, asap_path)
        self._turn = threading.Lock()
        about: _About = self.handle()[2]
        self.reader, self.reader_version, self.vendor = about.reader, about.reader_version, about.vendor
        self.level_sizes, self.mpp = about.level_sizes, about.mpp
        self.origin = about.origin
        """Level-0 position of the scanned region, see `bounds_origin`."""

    def opened_again(self) -> "RemoteSlide":
        """The same file in another process, for another thread."""
        return RemoteSlide(self.path, *self._how)

    def _open(self) -> tuple[BaseProcess, Connection, _About]:
        context = multiprocessing.get_context("spawn")  # readers do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.path, *self._how), daemon=True)
        process.start()
        theirs.close()
        try:
            ours.recv()
        except (EOFError, OSError):
            raise cannot_start() from None
        return process, ours, self._answer(process, ours.recv)

    def _read_inside(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        with self._turn:
            process, connection, _ = self.handle()
            pixels = np.empty((height, width, 3), np.uint8)

            def ask() -> None:
                connection.send((x, y, width, height, level))
                return connection.recv()

            self._answer(process, ask)
            self._answer(process, lambda: connection.recv_bytes_into(pixels.reshape(-1)))
            return pixels

    def _answer(self, process: BaseProcess, ask: Callable[[], Any]) -> Any:
        """What the process answers; raises what it could not do, and SlideError when it is gone."""
        try:
            answer = ask()
        except (EOFError, OSError):
            process.join(SECONDS_TO_END)
            raise SlideError(f"{self.path}: {DIED} (exit status {process.exitcode})") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process; the next read starts another."""
        if self._handle is not None:
            process, connection, _ = self._handle
            connection.close()  # it ends when nobody asks any more
            process.join(SECONDS_TO_END)
            process.kill()
        super().close()


def _serve(connection: Connection, path: Path, backend: str, asap_path: Path | None) -> None:
    """In the process: open the slide, then answer requests (arguments of `_read_inside`) until the pipe is closed."""
    prepare()
    connection.send("started")
    try:
        with guard(path):
            slide = open_slide(path, backend, asap_path)
            connection.send(
                _About(
                    slide.reader, slide.reader_version, slide.vendor, slide.level_sizes, slide.mpp, bounds_origin(path)
                )
            )
    except Exception as error:  # noqa: BLE001 raised again by who asked
        connection.send(error)
        return
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            with guard(path):
                pixels = slide._read_inside(*request)
        except Exception as error:  # noqa: BLE001 raised again by who asked
            connection.send(error)
        else:
            connection.send(None)
            connection.send_bytes(np.ascontiguousarray(pixels).reshape(-1).data)
