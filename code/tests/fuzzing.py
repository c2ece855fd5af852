"""Feeding a reader with one input: what test_fuzz.py and benchmarks/fuzz.py share."""

import contextlib
import os
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from epsam.errors import EpsamError
from tests.mutations import Mutation

LIMIT_BYTES = 2**30
"""Memory that one input may cost; more is a MemoryError, which is a fault."""
MAX_MESSAGE = 500
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys."""


class Kind(NamedTuple):
    """A file and its reader."""

    path: Path
    """Where the reader looks for the file."""
    whole: bytes
    mutate: Mutation
    read: Callable[[], object]
    """Reads what lies at `path`, in any state."""
    named: bool = True
    """Whether an error must name the file, its stem or a folder it lies in: not so for what is no file."""
    one_in: int = 1
    """Of so many rounds over all kinds, one takes this kind: more than 1 where a reader is slow."""

    def write(self, name: str, seed: int, number: int) -> None:
        """Write input `number` of the kind called `name`: the same bytes each time."""
        self.write_bytes(self.mutate(Random(f"{seed} {name} {number}"), self.whole))

    def write_bytes(self, content: bytes) -> None:
        """Write an input."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(content)

    def fault(self) -> str:
        """Read what was written; what is wrong with the way that ends, or nothing."""
        try:
            self.read()
        except EpsamError as error:
            return self._fault_of_message(str(error))
        except Exception as error:  # noqa: BLE001  that any other exception escapes is what is looked for
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}epsam{os.sep}" in f.filename]
            place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the reader"
            return f"{type(error).__name__} in {place}: {' '.join(str(error).split())[:200]}"
        return ""

    def _fault_of_message(self, message: str) -> str:
        if len(message) > MAX_MESSAGE:
            return f"a message too long: {message[:100]} ..."
        if CONTROL.search(message):
            return f"a message with control characters: {message!r}"
        if self.named and self.path.stem not in message and str(self.path.parents[1]) not in message:
            return f"a message that does not name the file: {message}"
        return ""


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """No more than another gigabyte for this process, where the system knows such a limit (Linux)."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
