"""What the C library does with memory that is freed: give it back to the kernel, or keep it for the next tensor."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Options of glibc's mallopt: how much free memory stays at the heap's end, from which size on a piece is mapped by
itself (and unmapped when freed), and how many such pieces there may be."""
WORKER_BYTES = 16 * 2**20


def keep_freed_memory() -> None:
    """Have this process keep all it frees: new memory for each tensor of a step costs a page fault every 4 KiB.

    Its resident memory stays at its peak. Off glibc nothing changes.
    """
    set_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def keep_windows() -> None:
    """The same for what a worker reads slides with; pieces above `WORKER_BYTES` are given back, as there are many workers.

    New memory for each window's pixels costs a tenth of the time that reading takes.
    """
    set_options({M_MMAP_THRESHOLD: WORKER_BYTES, M_TRIM_THRESHOLD: 4 * WORKER_BYTES})


def set_options(options: dict[int, int]) -> None:
    """glibc's mallopt for each of `options`; nothing where the C library is another."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in options.items():
            libc.mallopt(option, value)
