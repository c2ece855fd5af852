"""Pictures that are no slides, such as PNG, JPEG and striped TIFF, as the tiled pyramid that every reader opens."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from epsam.errors import SlideError
from epsam.runtime.failures import reason_of
from epsam.runtime.files import atomic
from epsam.runtime.image_formats import PNG_DEPTH, PNG_HEAD, TIFF_HEADS, has_opacity, is_decoded_to_rgb
from epsam.runtime.log import logger, progress
from epsam.slides.slide import PLAUSIBLE_MPP, plausible_mpp
from epsam.slides.tiff import largest_page, mpp_of

TILE_PX = 512
QUALITY = 90
MIN_LEVEL_PX = 1024
"""The coarsest level is the first whose longer side is not above this."""
MAX_PX = 2**30
"""Of a picture, which is decoded in memory as a whole: 3 GB."""
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes with colour."""


def convert(source: Path, target: Path, mpp: float | None = None) -> None:
    """Write the largest picture of `source` as a tiled JPEG pyramid with its resolution; takes 4 to 8 bytes a pixel.

    mpp: um per pixel; None: as `source` says. Raises SlideError when `source` is no picture in colour or says no
    resolution, or when `target` exists.
    """
    if target.suffix.lower() not in (".tif", ".tiff"):
        raise SlideError(f"{target}: the name of the new slide must end in .tif")
    if target.exists():
        raise SlideError(f"{target}: is there already; give another name, or delete it")
    if not source.is_file():
        raise SlideError(f"{source}: no such file; give a picture or slide")
    pixels, found = read_picture(source)
    resolution = (mpp, mpp) if mpp is not None else found
    if resolution is None or plausible_mpp(*resolution) is None:
        low, high = PLAUSIBLE_MPP
        raise SlideError(
            f"{source}: "
            + ("does not say its resolution" if mpp is None else f"{mpp:g} um per pixel is no resolution")
            + f"; give --mpp, um per pixel, between {low:g} and {high:g} (scanners: 0.25 at 40x, 0.5 at 20x)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        write_pyramid(temporary, pixels, resolution)
    logger.info(f"{target}: {pixels.shape[1]} x {pixels.shape[0]} px, {resolution[0]:.4g} um/px, from {source}")


def read_picture(path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
    """(H, W, 3) uint8 RGB and um per pixel, None where the file does not say; raises SlideError."""
    try:
        with path.open("rb") as stream:
            head = stream.read(PNG_DEPTH + 1)
        if head.startswith(TIFF_HEADS):
            return _read_tiff(path)
        is_deep_png = head.startswith(PNG_HEAD) and head[PNG_DEPTH:] == b"\x10"
        return (_read_deep_png(path) if is_deep_png else _read_with_pillow(path)), None
    except SlideError:
        raise
    except UnidentifiedImageError:
        raise SlideError(f"{path}: no picture that is known here; export it as TIFF, PNG or JPEG") from None
    except Exception as error:  # noqa: BLE001 decoders raise many kinds for damaged files
        raise SlideError(f"{path}: cannot be read as a picture ({reason_of(error)}); get the file again") from None


def _read_tiff(path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        page = largest_page(tiff)
        _check_size(path, page.imagewidth, page.imagelength)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE or page.samplesperpixel < 3:
            raise _no_colour(path)
        if not is_decoded_to_rgb(page):
            return _read_with_pillow(path), mpp_of(page)
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            pixels = np.moveaxis(pixels, 0, -1)
        if not has_opacity(page):
            pixels = pixels[..., :3]
        return _over_white(_as_8_bit(path, pixels)), mpp_of(page)


def _read_with_pillow(path: Path) -> np.ndarray:
    with _without_limit(), Image.open(path) as image:
        _check_size(path, *image.size)
        if image.mode not in COLOUR_MODES:
            raise _no_colour(path)
        transparent = "A" in image.mode or "transparency" in image.info
        return _over_white(np.asarray(image.convert("RGBA" if transparent else "RGB")))


def _read_deep_png(path: Path) -> np.ndarray:
    """A PNG of 16 bits a channel, of which Pillow would keep the upper 8 whether they are used or not."""
    with _without_limit(), Image.open(path) as image:
        _check_size(path, *image.size)
    pixels = imagecodecs.png_decode(path.read_bytes())
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        raise _no_colour(path)
    return _over_white(_as_8_bit(path, pixels))


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow refuses pictures of 180 million pixels, as regions of slides are; `_check_size` does that here."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PX:
        raise SlideError(
            f"{path}: {width} x {height} px are too many to convert in memory; convert it with "
            "`vips tiffsave --tile --pyramid --compression jpeg` or bfconvert"
        )


def _no_colour(path: Path) -> SlideError:
    return SlideError(f"{path}: is grey or has a palette, and stain is told by colour; export it in RGB")


def _as_8_bit(path: Path, pixels: np.ndarray) -> np.ndarray:
    """uint8 of unsigned integers: cameras write 10 to 16 bits into 16, so the highest bit that is set counts."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "u":
        raise SlideError(f"{path}: its values are of type {pixels.dtype}, not whole numbers; export it with 8 bits")
    bits = max(8, int(pixels.max()).bit_length())
    logger.info(f"{path}: {bits} of {pixels.dtype.itemsize * 8} bits are used; the upper 8 of them are kept")
    return (pixels >> (bits - 8)).astype(np.uint8)


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W, 3 or more) uint8, the fourth channel as opacity on white ground."""
    if pixels.shape[2] == 3:
        return pixels
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), TILE_PX):
        part = pixels[top : top + TILE_PX]
        share = part[..., 3:4] / 255
        out[top : top + TILE_PX] = np.rint(part[..., :3] * share + 255 * (1 - share))
    return out


def write_pyramid(path: Path, pixels: np.ndarray, mpp: tuple[float, float]) -> None:
    """Write (H, W, 3) uint8 RGB as tiles of JPEG, each level half the one before."""
    count = 1 + max(0, math.ceil(math.log2(max(pixels.shape[:2]) / MIN_LEVEL_PX)))
    with (
        tifffile.TiffWriter(path, bigtiff=pixels.nbytes > 2**31) as tiff,
        progress(total=count, desc="levels", unit="level") as bar,
    ):
        for level in range(count):
            if level:
                size = max(1, pixels.shape[1] // 2), max(1, pixels.shape[0] // 2)
                pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            tiff.write(
                pixels,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": QUALITY},
                subfiletype=int(level > 0),
                resolution=tuple(1e4 / (side * 2**level) for side in mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            bar.update()
