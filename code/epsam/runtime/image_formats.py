"""PNG, JPEG and TIFF: how large a picture is, from its header, before anything is decoded."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from epsam.errors import DataError
from epsam.runtime.placeholders import placeholder

if TYPE_CHECKING:
    import tifffile

MAX_PX = 2**27
"""Of one patch or mask: a file of a few kilobytes may unpack to gigabytes."""
HEAD_BYTES = 24
"""Of a file, with which its size can be read or its kind recognised; `version https://git-lfs` has 23."""
PNG_HEAD, PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24
"""First bytes of a PNG, and the place of the byte that gives its bits a channel."""
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF."""


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise DataError for a picture that is too large to be a patch."""
    if width * height > MAX_PX:
        raise DataError(f"{path}: {width} x {height} px are too many for a patch")


def image_size(path: Path, head: bytes = b"") -> tuple[int, int]:
    """(width, height) of a PNG, JPEG or TIFF from its header; `head`: its first bytes, where they are read already.

    Raises DataError when it is none of these, is cut off or has more than MAX_PX pixels.
    """
    head = (head or _head(path))[:HEAD_BYTES]
    if head.startswith(b"\xff\xd8\xff"):
        width, height = _size_by_library(path, "JPEG")
    elif head.startswith(TIFF_HEADS):
        width, height = _size_by_library(path, "TIFF")
    elif len(head) == HEAD_BYTES and head.startswith(PNG_HEAD):
        width, height = struct.unpack(">II", head[16:])
    else:
        raise DataError(f"{path}: is {placeholder(head) or 'not a PNG, JPEG or TIFF, or not a whole one'}")
    check_pixels(path, width, height)
    return width, height


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from None


def _size_by_library(path: Path, kind: str) -> tuple[int, int]:
    import tifffile
    from PIL import Image

    try:
        if kind == "TIFF":
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                return page.imagewidth, page.imagelength
        with Image.open(path, formats=[kind]) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # noqa: BLE001 Pillow and tifffile raise anything on damaged headers
        raise DataError(f"{path}: not a whole {kind} ({' '.join(str(error).split())[:200]})") from None


def is_decoded_to_rgb(page: "tifffile.TiffPage") -> bool:
    """Whether tifffile gives a page's pixels as grey or RGB; other colours it gives as they are stored."""
    from tifffile import COMPRESSION, PHOTOMETRIC

    if page.samplesperpixel == 1:
        return page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
    is_jpeg = page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG
    return page.photometric == PHOTOMETRIC.RGB or is_jpeg


def has_opacity(page: "tifffile.TiffPage") -> bool:
    """Whether the channel after a page's colours is its opacity, and not one of unknown meaning."""
    from tifffile import EXTRASAMPLE

    return bool(set(page.extrasamples) & {EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA})


def decode_tiff(path: Path) -> np.ndarray:
    """The first page of a TIFF: (H, W) or (H, W, BGR or BGRA), uint8 or uint16; raises DataError."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            check_pixels(path, page.imagewidth, page.imagelength)
            if (
                page.dtype not in (np.bool_, np.uint8, np.uint16)
                or page.samplesperpixel not in (1, 3, 4)
                or page.imagedepth > 1
            ):
                raise DataError(
                    f"{path}: a TIFF of {page.samplesperpixel} channels of {page.dtype}; patches are RGB of 8 or 16 "
                    "bits, masks grey of 1, 8 or 16"
                )
            if not is_decoded_to_rgb(page):
                raise DataError(
                    f"{path}: a TIFF whose colours are stored as {getattr(page.photometric, 'name', page.photometric)}; save it "
                    "in RGB, a mask in grey"
                )
            pixels = page.asarray()
            if pixels.dtype == bool:
                pixels = pixels.astype(np.uint8) * 255
            if page.samplesperpixel > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                pixels = np.moveaxis(pixels, 0, -1)
            if page.samplesperpixel == 4 and not has_opacity(page):
                pixels = pixels[..., :3]
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                pixels = np.iinfo(pixels.dtype).max - pixels
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 tifffile and its codecs raise anything on damaged files
        raise DataError(f"{path}: cannot be decoded as TIFF ({' '.join(str(error).split())[:200]})") from None
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]])
