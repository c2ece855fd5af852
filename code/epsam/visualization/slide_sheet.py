"""QA sheets: one picture per slide, to look at before the GPU is started."""

from pathlib import Path

import cv2
import numpy as np

from epsam.config.schema import Config
from epsam.patches.candidates import SlideCandidates, SlidePictures
from epsam.patches.manifest import SlideRecord
from epsam.patches.placement import AnnotationSource
from epsam.runtime.text import length_text, round_length
from epsam.visualization.drawing import Entry, add_legend, draw_lines, resize_mask, write_jpeg
from epsam.visualization.palette import (
    BLACK,
    CLASSIFIER_PATCH,
    EXCLUDED,
    NORMAL_PATCH,
    TISSUE,
    TRUTH,
    TUMOUR_PATCH,
    Colour,
)

FILL = 0.12
"""Opacity of windows, small enough to see the tissue below."""
WIDE_PX = 24
"""Side from which windows are framed by two pixels."""
MIN_PX = 640
"""Least width of a sheet and least longer side of its picture; smaller thumbnails are enlarged."""


def slide_sheet_path(folder: Path, slide: str) -> Path:
    """The sheet of a slide in the folder of a run's QA."""
    return folder / f"{slide}.jpg"


def write_slide_sheet(
    record: SlideRecord,
    scan: SlideCandidates,
    pictures: SlidePictures,
    purpose: np.ndarray,
    config: Config,
    folder: Path,
) -> None:
    """Write <slide>.jpg: thumbnail, tissue outline, annotation, chosen windows, and what the colours mean."""
    enlarge = max(1, MIN_PX / max(pictures.thumbnail.shape))
    size = tuple(round(side * enlarge) for side in pictures.thumbnail.shape[1::-1])
    picture = cv2.resize(pictures.thumbnail, size, interpolation=cv2.INTER_CUBIC)
    scale = picture.shape[1] / scan.size[0]
    legend = [_scale_bar(scan, scale), *_draw_outlines(picture, record, scan, pictures.tissue, config, scale)]
    legend += _draw_all_windows(picture, scan, purpose, scale)
    write_jpeg(slide_sheet_path(folder, record.slide), add_legend(picture, legend, least_px=MIN_PX))


def _draw_outlines(
    picture: np.ndarray,
    record: SlideRecord,
    scan: SlideCandidates,
    mask: np.ndarray,
    config: Config,
    scale: float,
) -> list[Entry]:
    """Draw tissue and annotation; gives the legend of what was there to draw."""
    tissue = resize_mask(mask, picture.shape[1::-1]).astype(np.uint8)
    lines = {"tissue": (TISSUE, list(cv2.findContours(tissue, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]))}
    if record.annotation:
        source = AnnotationSource.of(record.annotation, config.slides.groups, record.info)
        polygons = source.read(record.path, scan.size).polygons
        for kind, name, colour in (("tumour", "annotation", TRUTH), ("hole", "excluded from it", EXCLUDED)):
            lines[name] = colour, [np.rint(p.points * scale).astype(np.int32) for p in polygons if p.kind == kind]
    for colour, rings in lines.values():
        draw_lines(picture, rings, colour)
    return [Entry(name, colour, "line") for name, (colour, rings) in lines.items() if rings]


def _draw_all_windows(picture: np.ndarray, scan: SlideCandidates, purpose: np.ndarray, scale: float) -> list[Entry]:
    """Draw the windows that become patches, tumour last; gives their legend."""
    windows = {
        "normal patches": (NORMAL_PATCH, (purpose == "all") & (scan.label == 0)),
        "patches with tumour, classifier only": (CLASSIFIER_PATCH, purpose == "classifier"),
        "patches with tumour": (TUMOUR_PATCH, (purpose == "all") & (scan.label == 1)),
    }
    for colour, chosen in windows.values():
        _draw_windows(picture, scan, chosen, scale, colour)
    return [Entry(f"{chosen.sum()} {name}", colour) for name, (colour, chosen) in windows.items() if chosen.any()]


def _draw_windows(picture: np.ndarray, scan: SlideCandidates, chosen: np.ndarray, scale: float, colour: Colour) -> None:
    """Tint and frame windows; each frame lies within its window, so that neighbours can be told apart."""
    tint = picture.copy()
    corners = [(round(x * scale), round(y * scale)) for x, y in zip(scan.x[chosen], scan.y[chosen], strict=True)]
    side = max(2, round(scan.read_px * scale) - 1)
    for left, top in corners:
        cv2.rectangle(tint, (left, top), (left + side - 1, top + side - 1), colour, -1)
    cv2.addWeighted(tint, FILL, picture, 1 - FILL, 0, dst=picture)
    for left, top in corners:
        for inset in range(1 + (side >= WIDE_PX)):
            cv2.rectangle(
                picture, (left + inset, top + inset), (left + side - 1 - inset, top + side - 1 - inset), colour
            )


def _scale_bar(scan: SlideCandidates, scale: float) -> Entry:
    """A round length of at most a fifth of the slide's width; a window where the resolution is unknown."""
    if scan.mpp is None:
        return Entry(f"{scan.read_px} px", BLACK, "length", round(scan.read_px * scale))
    um = round_length(max(1, scan.size[0] * scan.mpp[0] / 5))
    return Entry(length_text(um), BLACK, "length", max(1, round(um / scan.mpp[0] * scale)))
