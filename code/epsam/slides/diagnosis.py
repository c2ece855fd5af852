"""Why a file cannot be read as a slide, and what to do: by what it holds, not by its name."""

import shlex
from pathlib import Path

import tifffile

from epsam.errors import SlideError
from epsam.runtime.failures import printable
from epsam.runtime.image_formats import TIFF_HEADS, is_decoded_to_rgb
from epsam.runtime.placeholders import head_of, placeholder

PICTURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"\0\0\0\x0cjP": "JPEG 2000",
}
ARCHIVES = {
    b"PK\3\4": "zip",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
HAMAMATSU = (b"[Virtual Microscope Specimen]", b"[Uncompressed Virtual Microscope Specimen]")
"""How VMS and VMU begin, which name the files of a slide."""
COLOURS = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
"""That OpenSlide decodes with any compression."""
AGAIN = "download it again"


def convert_advice(path: Path) -> str:
    """The command that makes a slide of a picture, as errors say it."""
    source = shlex.quote(printable(str(path)))
    return f"convert it: .venv/bin/python -m epsam convert {source} OUT.tif --mpp UM_PER_PIXEL"


def why_unreadable(path: Path, error: Exception) -> str:
    """What a file is that OpenSlide refused with `error`, and what to do."""
    if path.suffix.lower() == ".mrxs" and not (path.with_suffix("") / "Slidedat.ini").is_file():
        return f"the folder {printable(path.stem)}/ with Slidedat.ini is missing beside it; copy both"
    if head_of(path).startswith(HAMAMATSU):
        return "the files that it names are not all beside it, or damaged; copy all of them again"
    if what := _no_slide(path):
        return what
    reason = " ".join(str(error).split())
    if "ompression" in reason:
        return f"OpenSlide does not read its compression ({reason}); the file is complete: {convert_advice(path)}"
    if head_of(path).startswith(TIFF_HEADS):
        return f"OpenSlide cannot open this TIFF ({reason}); {AGAIN}, or {convert_advice(path)}"
    return f"OpenSlide cannot open it ({reason}); {AGAIN}, or export it from the scanner's program as a tiled TIFF"


def _no_slide(path: Path) -> str:
    """What the file is instead of a slide, with advice; empty where its first bytes say nothing else."""
    head = head_of(path)
    if what := placeholder(head):
        return what
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    if text.startswith((b"<?xml", b"{", b"[")):
        return f"a text file (XML or JSON), not a slide; {AGAIN}"
    if name := next((name for start, name in ARCHIVES.items() if head.startswith(start)), ""):
        return f"a {name} archive, not a slide; unpack it first"
    if path.suffix.lower() in (".mrxs", ".vms", ".vmu"):
        return ""  # their first bytes are those of another format
    if name := next((name for start, name in PICTURES.items() if head.startswith(start)), ""):
        return f"a {name} picture, not a slide; {convert_advice(path)}"
    if head and not head.strip(b"\0") and path.suffix.lower() != ".dcm":
        return f"its first {len(head)} bytes are zero, the download did not finish; {AGAIN}"
    return ""


def check_picture(path: Path, page: tifffile.TiffPage) -> None:
    """Raise SlideError when a page of a TIFF is no picture in colour of 8 bits in tiles; it says what to do."""
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE or page.samplesperpixel < 3:
        kind = "has a palette" if page.photometric == tifffile.PHOTOMETRIC.PALETTE else "is grey (one channel)"
        raise SlideError(
            f"{path}: {kind}, and stain is told by colour; export it in RGB (a mask belongs into annotations/)"
        )
    if page.bitspersample != 8:
        raise SlideError(f"{path}: has {page.bitspersample} bits a channel, slides have 8; {convert_advice(path)}")
    if page.photometric not in COLOURS:
        raise _other_colours(path, page)
    if not page.is_tiled:
        raise SlideError(f"{path}: a TIFF must be tiled, this one is stored in strips; {convert_advice(path)}")


def _other_colours(path: Path, page: tifffile.TiffPage) -> SlideError:
    return SlideError(f"{path}: its colours are stored as {_name(page.photometric)}; {convert_advice(path)}")


def check_codec(path: Path, page: tifffile.TiffPage) -> None:
    """Raise SlideError when no decoder is here for the compression of a page, or tifffile does not turn it into RGB."""
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        raise SlideError(
            f"{path}: its compression {_name(page.compression)} is one that nothing here decodes; export it with JPEG "
            "compression from the program that wrote it"
        ) from None
    if not is_decoded_to_rgb(page):
        raise _other_colours(path, page)


def _name(value: object) -> str:
    return str(getattr(value, "name", value))
