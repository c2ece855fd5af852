"""Placeholders: what a download or a repository leaves in place of a file that it did not bring."""

HEAD_BYTES = 1024
"""Of a file, with which `placeholder` can say what it is."""


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
