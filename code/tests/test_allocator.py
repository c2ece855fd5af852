"""Memory that is freed stays with the process, so that the next step need not ask for it anew."""

import platform
import subprocess
import sys

import pytest

HOLD = """
import numpy, psutil
{before}
def command(**_):
    numpy.ones({mib} * 2**20, numpy.uint8)
    print(psutil.Process().memory_info().rss > {mib} * 2**20)
{run}
"""


def _stays(mib: int, before: str, run: str) -> bool:
    code = HOLD.format(before=before, mib=mib, run=run)
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    return out.strip() == "True"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_commands_keep_what_they_free_and_workers_give_large_pieces_back():
    assert _stays(400, "import epsam.cli", "epsam.cli.cli.main = command; epsam.cli.main()")
    assert not _stays(400, "from epsam.runtime.allocator import keep_windows", "keep_windows(); command()")


def test_another_c_library_is_left_alone(monkeypatch):
    from epsam.runtime import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("no mallopt there"))
    allocator.keep_freed_memory()
