"""Lines, text, scale bars and legends on pictures, RGB uint8 (H, W, 3); drawn in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import matplotlib
import numpy as np
from matplotlib.font_manager import get_font
from PIL import Image, ImageDraw, ImageFont

from epsam.runtime.files import atomic
from epsam.runtime.text import length_text, round_length
from epsam.visualization.palette import BLACK, WHITE, Colour, edge_of, map_colours

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""Of all pictures; it comes with matplotlib, whose default it is."""
TEXT_PX = 13
LINE_PX = 24
"""Height of a line of a legend."""
TINT, LIGHT_TINT = 0.35, 0.55
"""Opacity of areas in dark and in light colours."""
MARGIN = 8


def tint(picture: np.ndarray, mask: np.ndarray, colour: Colour, opacity: float | None = None) -> None:
    """Colour the area of a mask, bool (H, W)."""
    if opacity is None:
        opacity = LIGHT_TINT if edge_of(colour) == BLACK else TINT
    picture[mask] = ((1 - opacity) * picture[mask] + opacity * np.array(colour)).astype(np.uint8)


def outline(picture: np.ndarray, mask: np.ndarray, colour: Colour, width: int = 3) -> None:
    """Draw where a mask, bool (H, W), ends, which the border of the picture is not; edged so that it is seen."""
    for extra, line in ((2, edge_of(colour)), (0, colour)):
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width + extra, width + extra))
        picture[cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, brush) > 0] = line


def draw_lines(picture: np.ndarray, rings: Iterable[np.ndarray], colour: Colour, width: int = 2) -> None:
    """Draw closed lines, each (N, 2) int32 (x, y); edged as those of `outline`. `rings` is gone through twice."""
    for extra, line in ((2, edge_of(colour)), (0, colour)):
        for ring in rings:
            cv2.polylines(picture, [ring], True, line, width + extra, cv2.LINE_AA)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask, bool (H, W), at `size` (width, height); smooth where it is enlarged."""
    return cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) > 127


@cache
def _font(px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), px, layout_engine=ImageFont.Layout.BASIC)


def drawable(text: str) -> str:
    """`text` with a sign in place of letters that the font of pictures lacks, such as Chinese ones."""
    known = get_font(str(FONT))
    return "".join(letter if known.get_char_index(ord(letter)) else "\N{REPLACEMENT CHARACTER}" for letter in text)


def text_width(text: str, px: int = TEXT_PX) -> int:
    """Pixels that a line of text takes."""
    return round(_font(px).getlength(text))


def draw_text(picture: np.ndarray, x: int, y: int, text: str, colour: Colour = BLACK, px: int = TEXT_PX) -> None:
    """Write one line of text with its upper left corner at (x, y)."""
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((x, y), text, fill=colour, font=_font(px))
    picture[:] = np.asarray(image)


def fit_text(text: str, width: int, px: int = TEXT_PX) -> str:
    """The text, its end cut off where it would be wider than `width` pixels."""
    if text_width(text, px) <= width:
        return text
    while text and text_width(text + "…", px) > width:
        text = text[:-1]
    return text + "…"


def draw_scale_bar(picture: np.ndarray, um_per_px: float) -> None:
    """A bar of a round length, at most a quarter of the width, in the lower left corner."""
    height, width = picture.shape[:2]
    um = round_length(width * um_per_px / 4)
    bar, text = round(um / um_per_px), length_text(um)
    box = max(bar, text_width(text)) + 10
    area = picture[height - 30 : height - 4, 4 : 4 + box]
    area[:] = (0.15 * area + 0.85 * 255).astype(np.uint8)
    cv2.rectangle(picture, (9, height - 11), (9 + bar - 1, height - 8), BLACK, -1)
    draw_text(picture, 9, height - 29, text)


@dataclass(frozen=True)
class Entry:
    """What a colour means."""

    text: str
    colour: Colour
    kind: Literal["area", "line", "point", "length"] = "area"
    mark_px: int = 14


def add_legend(picture: np.ndarray, entries: Sequence[Entry], map_title: str = "", least_px: int = 0) -> np.ndarray:
    """The picture, widened with white to `least_px`, above as many lines as its legend needs.

    With `map_title`, a bar of the map's colours from 0 to 1 comes first.
    """
    height, width = picture.shape[0], max(least_px, picture.shape[1])
    bars = [Entry(f"1  {map_title}", BLACK, "length", 100)] if map_title else []
    x, y, placed = MARGIN, height + MARGIN, []
    for entry in [*bars, *entries]:
        lead = 14 if entry in bars else 0
        needed = lead + entry.mark_px + 6 + text_width(entry.text)
        if x > MARGIN and x + needed > width:
            x, y = MARGIN, y + LINE_PX
        placed.append((entry, x + lead, y))
        x += needed + 18
    sheet = np.full((y + LINE_PX - 2, width, 3), 255, np.uint8)
    sheet[:height, : picture.shape[1]] = picture
    for entry, left, top in placed:
        if entry in bars:
            sheet[top : top + 13, left : left + entry.mark_px] = map_colours(np.linspace(0, 1, entry.mark_px)[None])
            draw_text(sheet, left - 13, top - 1, "0")
        else:
            _draw_mark(sheet, left, top, entry)
        draw_text(sheet, left + entry.mark_px + 6, top - 1, entry.text)
    return sheet


def _draw_mark(sheet: np.ndarray, x: int, y: int, entry: Entry) -> None:
    right, bottom = x + entry.mark_px - 1, y + 12
    if entry.kind == "length":
        cv2.rectangle(sheet, (x, y + 5), (right, y + 8), entry.colour, -1)
    elif entry.kind == "point":
        centre = (x + entry.mark_px // 2, y + 6)
        cv2.circle(sheet, centre, 5, BLACK, -1, cv2.LINE_AA)
        cv2.circle(sheet, centre, 4, entry.colour, -1, cv2.LINE_AA)
    elif entry.kind == "line":
        cv2.rectangle(sheet, (x, y), (right, bottom), (90, 90, 90), 4)
        cv2.rectangle(sheet, (x + 1, y + 1), (right - 1, bottom - 1), entry.colour, 2)
        cv2.rectangle(sheet, (x + 3, y + 3), (right - 3, bottom - 3), WHITE, -1)
    else:
        cv2.rectangle(sheet, (x, y), (right, bottom), (90, 90, 90), -1)
        cv2.rectangle(sheet, (x + 1, y + 1), (right - 1, bottom - 1), entry.colour, -1)


def write_jpeg(path: Path, picture: np.ndarray, quality: int = 85) -> None:
    """Write as JPEG, atomically; colours at full resolution, because thin lines need it."""
    with atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="JPEG", quality=quality, subsampling=0)
