"""Which files are slides, by their names, and what a slide is called: one list for training and inference."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from epsam.errors import SlideError

SUFFIXES = (
    ".bif",
    ".czi",
    ".dcm",
    ".mrxs",
    ".ndpi",
    ".scn",
    ".svs",
    ".svslide",
    ".tif",
    ".tiff",
    ".vms",
    ".vmu",
)
"""Ends of names of slides, in small letters."""
DATA_FOLDERS = (".mrxs", ".vms", ".vmu")
"""Slides whose parts lie in a folder of their name, or beside them."""
END_BYTES, SAMPLE_BYTES, SAMPLES = 2**16, 2**12, 6
"""What of a slide is read to see whether it is another file, as slides have gigabytes: its first and last bytes, which
hold the directories of a TIFF, and samples of its pixels between them."""


def is_slide_name(path: Path) -> bool:
    """Whether a file is a slide by the end of its name."""
    return path.suffix.lower() in SUFFIXES


def slide_name(path: Path) -> str:
    """Name of a slide: that of its file without suffix (`.tif`, `.ome.tif`), in composed Unicode (NFC).

    macOS writes an umlaut as two characters, other systems as one; both are one name.
    """
    stem = path.stem
    if path.suffix.lower() in (".tif", ".tiff") and stem.lower().endswith(".ome"):
        stem = stem[: -len(".ome")]
    return unicodedata.normalize("NFC", stem)


def match_key(name: str) -> str:
    """By which names of slides, annotations and rows of tables are compared: NFC, without upper and lower case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def slide_stamp(path: Path) -> str:
    """Size, time and a hash of parts of a slide, by which a replaced one is noticed; raises SlideError.

    Where the parts of a slide lie in a folder of its name, they count by size and time.
    """
    digest = hashlib.sha256()
    try:
        found = path.stat()
        digest.update(_sampled(path, found.st_size))
        if path.suffix.lower() in DATA_FOLDERS:
            parts = [(part.name, part.stat()) for part in sorted(path.with_suffix("").glob("*"))]
            digest.update(repr([(name, of.st_size, of.st_mtime_ns) for name, of in parts]).encode())
    except OSError as error:
        raise _unreachable(path, error) from None
    return f"{found.st_size} {found.st_mtime_ns} {digest.hexdigest()}"


def content_hash(path: Path) -> str:
    """A hash of parts of a slide's file, by which copies are found; raises SlideError."""
    try:
        return hashlib.sha256(_sampled(path, path.stat().st_size)).hexdigest()
    except OSError as error:
        raise _unreachable(path, error) from None


def _sampled(path: Path, size: int) -> bytes:
    """Parts of a file, see `_places`."""
    parts = []
    with path.open("rb") as stream:
        for start, count in _places(size):
            stream.seek(start)
            parts.append(stream.read(count))
    return b"".join(parts)


def _unreachable(path: Path, error: OSError) -> SlideError:
    return SlideError(f"{path}: cannot be reached ({error.strerror}); is it a link to a place that is not mounted?")


def slide_bytes(path: Path) -> int:
    """Bytes of a slide with the files of its data folder; 0 where it cannot be reached."""
    try:
        parts = path.with_suffix("").glob("*") if path.suffix.lower() in DATA_FOLDERS else ()
        return path.stat().st_size + sum(part.stat().st_size for part in parts)
    except OSError:
        return 0


def _places(size: int) -> list[tuple[int, int]]:
    """Where in a file of `size` bytes is read, and how many bytes."""
    if size <= 2 * END_BYTES + SAMPLES * SAMPLE_BYTES:
        return [(0, size)]
    step = (size - END_BYTES) // (SAMPLES + 1)
    samples = [(number * step, SAMPLE_BYTES) for number in range(1, SAMPLES + 1)]
    return [(0, END_BYTES), *samples, (size - END_BYTES, END_BYTES)]


def files_below(folder: Path) -> list[Path]:
    """All files and links to files under `folder`, through links, in order; not those of a slide's data folder."""
    return sorted(_walk(folder)) if folder.is_dir() else []


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        parts = {Path(name).stem for name in files if Path(name).suffix.lower() in DATA_FOLDERS}
        folders[:] = [name for name in folders if not name.startswith(".") and name not in parts]
        yield from (Path(place) / name for name in files if not name.startswith("."))
