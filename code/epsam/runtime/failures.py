"""The guard around one slide or patch: whatever goes wrong with it costs it alone.

Not its fault, and never swallowed: Ctrl-C, a full disk and other errors of the folders written to, the GPU, settings.
"""

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epsam.errors import AnnotationError, DataError, EpsamError, SlideError
from epsam.runtime.log import logger
from epsam.runtime.records import is_plain

OF_THE_ITEM = (SlideError, AnnotationError, DataError)


OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE}


OF_THE_NAME = {errno.ENAMETOOLONG, errno.EILSEQ}


MAX_NAME_BYTES = 200
"""Of a slide's name: names of patches and outputs add up to 40 bytes to it, and file systems allow 255."""


MAX_REASON = 300


SIGNS_OF_FULL_GPU = (
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "MPS backend out of memory",
)
"""In messages of RuntimeError: libraries that allocate for themselves do not raise torch.OutOfMemoryError."""


@contextmanager
def guard(*files: Path | None) -> Iterator[None]:
    """Raise whatever the block raises about one item as SlideError, AnnotationError or DataError.

    files: what the item is read from; the first is named. The error's `details` hold the traceback of an exception
    that nobody expected. Errors that the next item would meet as well are raised as they are.
    """
    try:
        yield
    except OF_THE_ITEM:
        raise
    except Exception as error:
        if _stops_the_run(error, files):
            raise
        failure = SlideError(f"{files[0]}: {reason_of(error)}")
        failure.details = traceback.format_exc()
        raise failure from error


def _stops_the_run(error: Exception, files: tuple[Path | None, ...]) -> bool:
    if isinstance(error, EpsamError):
        return True
    if isinstance(error, OSError):
        ours = error.filename is None or str(error.filename) in {str(file) for file in files}
        return error.errno in OF_THE_MACHINE or not (ours or error.errno in OF_THE_NAME)
    torch = sys.modules.get("torch")  # preprocess does without
    return torch is not None and (is_out_of_gpu_memory(error) or _is_of_the_gpu(error, torch))


def _is_of_the_gpu(error: Exception, torch: Any) -> bool:
    """Whether a kernel failed; before PyTorch 2.8 such an error has no type of its own."""
    if hasattr(torch, "AcceleratorError"):
        return isinstance(error, torch.AcceleratorError)
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether the GPU's memory is full, as PyTorch, cuDNN, cuBLAS or CUDA itself say it."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS_OF_FULL_GPU)


def reason_of(error: BaseException) -> str:
    """Type and message of an exception in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = text or "there is not enough memory for it"
    return f"{type(error).__name__}: {text}"[:MAX_REASON]


def log_failure(name: str, error: EpsamError) -> None:
    """One line for the terminal, and the traceback, where there is one, for the log file alone."""
    logger.warning(f"{printable(name)} failed: {error}")
    if error.details:
        logger.debug(error.details)


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are no UTF-8 as `\\udcff`."""
    return name.encode(errors="backslashreplace").decode()


def check_name(path: Path) -> None:
    """Raise SlideError for a slide whose name cannot become part of the names of its patches and outputs."""
    if problem := _name_problem(path.stem):
        raise SlideError(f"{path.parent}: {printable(path.name[:40])}: its name {problem}; rename it")


def has_usable_name(path: Path) -> bool:
    """Whether `check_name` lets a slide pass."""
    return not _name_problem(path.stem)


def _name_problem(name: str) -> str:
    if name != printable(name):
        return "is not UTF-8"
    if not is_plain(name):
        return "holds a backslash"
    count = len(name.encode())
    return (
        ""
        if count <= MAX_NAME_BYTES
        else (f"has {count} bytes, at most {MAX_NAME_BYTES} leave room for those of its patches and outputs")
    )
