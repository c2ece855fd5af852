"""Which files are slides, by their names, and what a slide is called: one list for training and inference."""

import unicodedata
from pathlib import Path

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
