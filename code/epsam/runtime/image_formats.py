"""JPEG and TIFF as people have their patches in: how large they are, before anything is decoded."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from epsam.errors import DataError

MAX_PX = 2**27
"""Of one patch or mask: a file of a few kilobytes may unpack to gigabytes."""
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF."""


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise DataError for a picture that is too large to be a patch."""
    if width * height > MAX_PX:
        raise DataError(f"{path}: {width} x {height} px are too many for a patch")


def jpeg_size(path: Path) -> tuple[int, int]:
    """(width, height) of a JPEG by its header; raises DataError when it has none."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # noqa: BLE001 Pillow raises anything on damaged headers
        raise DataError(f"{path}: not a whole JPEG ({' '.join(str(error).split())[:200]})") from None


def decode_tiff(path: Path) -> np.ndarray:
    """The first page of a TIFF: (H, W) or (H, W, BGR or BGRA), uint8 or uint16; raises DataError."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            check_pixels(path, page.imagewidth, page.imagelength)
            if page.dtype not in (np.uint8, np.uint16) or page.samplesperpixel not in (1, 3, 4) or page.imagedepth > 1:
                raise DataError(
                    f"{path}: a TIFF of {page.samplesperpixel} channels of {page.dtype}; patches are RGB of 8 or 16 bits"
                )
            pixels = page.asarray()
            if page.samplesperpixel > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                pixels = np.moveaxis(pixels, 0, -1)
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                pixels = np.iinfo(pixels.dtype).max - pixels
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 tifffile and its codecs raise anything on damaged files
        raise DataError(f"{path}: cannot be decoded as TIFF ({' '.join(str(error).split())[:200]})") from None
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]])
