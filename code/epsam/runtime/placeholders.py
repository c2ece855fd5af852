"""Placeholders: what a download or a repository leaves in place of a file that it did not bring."""

from pathlib import Path

HEAD_BYTES = 1024
"""Of a file, with which `placeholder` can say what it is."""


def head_of(path: Path) -> bytes:
    """The first HEAD_BYTES of a file; none where it cannot be read, as whoever reads all of it says why."""
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""


def placeholder(head: bytes) -> str:
    """What the file that begins with `head` is in place of the data, with advice; empty where nothing says so."""
    text = head[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
    if text.startswith((b"<!doctype html", b"<html")):
        return (
            "a web page, not the file itself: the download link asked for a login or has moved; download it again in "
            "a browser"
        )
    return ""
