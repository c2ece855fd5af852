"""The page of one slide: a picture that zooms, with tissue, probability and outlines over it, and its foci."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import shapely
from PIL import Image
from shapely.geometry import Polygon

from epsam.inference.foci import Foci, Focus
from epsam.inference.output import OUTPUTS
from epsam.inference.pages.picture import TILE_PX, Picture, write_picture
from epsam.inference.pages.records import FocusRecord, PageRecord, area_text, side_text
from epsam.inference.polygons import Polygons
from epsam.inference.probability import ProbabilityMap
from epsam.runtime.files import atomic, write_text
from epsam.runtime.records import write_record
from epsam.slides.slide import Slide
from epsam.visualization.drawing import draw_lines, write_jpeg
from epsam.visualization.page import render
from epsam.visualization.palette import PREDICTION, map_colours, map_opacity

FOLDER = Path(__file__).parent
THUMBNAIL_PX = 640
TISSUE_PX = 2048
"""Longer side at which the outline of the tissue is followed."""
MAX_VERTICES = 200_000
"""Of all outlines on a page; where there are more they are simplified further."""
MAX_LISTED = 500
"""Foci of the table of a page, the largest; the others are in the picture alone."""
FILES = {
    ".geojson": "GeoJSON",
    ".xml": "XML",
    "_mask.tif": "mask",
    "_probability.tif": "probability",
    "_overlay.png": "overlay",
}
"""What the files of a slide are, by how their names end."""


def write_slide_page(
    folder: Path,
    slide: Slide,
    row: dict[str, Any],
    foci: Foci,
    sides: Sequence[float],
    source: ProbabilityMap,
    tissue: np.ndarray,
    caption: str,
    warnings: list[str],
) -> None:
    """Write <folder>/<name>.html with its pictures and <name>.json, its record for index.html.

    `row`: of slides.csv; `sides`: longest side of each focus in level-0 px; `tissue`: bool (H, W), the whole slide.
    """
    name = row["slide"]
    picture = write_picture(folder, name, slide)
    _write_probability(folder / f"{name}_probability.png", source, picture)
    _write_thumbnail(folder / f"{name}_thumbnail.jpg", picture, foci)
    record = PageRecord(warnings=warnings, foci=[_record(f, side) for f, side in zip(foci, sides, strict=True)])
    lines = [focus_text(number, focus, slide.mpp) for number, focus in enumerate(record.foci, 1)]
    shapes = [_shape(polygon) for polygon in _simplified(foci.outlines, picture)]
    data = {
        "size": slide.size,
        "um": slide.mpp and slide.mpp[0],
        "side": TILE_PX,
        "levels": picture.levels,
        "pictures": quote(name),
        "tissue": _tissue_rings(tissue, slide.size),
        "foci": [
            {"rings": rings, "box": [round(v) for v in box], "text": text}
            for box, rings, text in zip(foci.outlines.bounds.tolist(), shapes, lines, strict=True)
        ],
    }
    largest = sorted(range(len(foci)), key=lambda i: -record.foci[i].area_px2)[:MAX_LISTED]
    page = render(
        FOLDER / "slide.html",
        name=name,
        caption=caption,
        row=row,
        file=Path(row["path"]).name,
        warnings=warnings,
        files=files_of(name, "../"),
        data=data,
        foci=[(i + 1, record.foci[i]) for i in largest],
        area=lambda px2: area_text(px2, slide.mpp),
        side=lambda px: side_text(px, slide.mpp),
        more=len(foci) - len(largest),
        viewer=script("viewer.js"),
        sort=script("sort.js"),
    )
    write_text(folder / f"{name}.html", page)
    write_record(folder / f"{name}.json", record)


def script(file: str) -> str:
    """JavaScript for a page."""
    return (FOLDER / file).read_text(encoding="utf-8")


def files_of(name: str, to_top: str = "") -> list[tuple[str, str]]:
    """Links to the files of a slide, and what they are."""
    return [(to_top + quote(name + suffix), FILES[suffix]) for suffix in OUTPUTS]


def focus_text(number: int, focus: FocusRecord, mpp: tuple[float, float] | None) -> str:
    """A focus in one line."""
    return (
        f"Focus {number}: {area_text(focus.area_px2, mpp)}, longest side {side_text(focus.longest_px, mpp)}, mean "
        f"probability {focus.probability:.2f}; level 0 at x {focus.x:,}, y {focus.y:,}"
    )


def _record(focus: Focus, side: float) -> FocusRecord:
    place = focus.polygon.representative_point()
    return FocusRecord(
        area_px2=focus.polygon.area,
        longest_px=side,
        x=round(place.x),
        y=round(place.y),
        probability=min(1.0, round(focus.probability, 4)),
    )


def _write_probability(path: Path, source: ProbabilityMap, picture: Picture) -> None:
    """The map in colour at the size of the coarsest level, the more opaque the higher."""
    rows, columns = picture.coarsest.shape[:2]
    values = np.arange(256, dtype=np.float32) / 255
    image = Image.fromarray(source.sample(0, 0, columns, rows, picture.step))
    image.putpalette(map_colours(values).tobytes(), "RGB")
    opacity = np.rint(255 * map_opacity(values)).astype(np.uint8)
    with atomic(path) as temporary:
        image.save(temporary, format="PNG", transparency=opacity.tobytes())


def _write_thumbnail(path: Path, picture: Picture, foci: Foci) -> None:
    scale = min(1.0, THUMBNAIL_PX / max(picture.coarsest.shape))
    small = cv2.resize(picture.coarsest, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    draw_lines(small, _ScaledRings(foci, scale / picture.step), PREDICTION)
    write_jpeg(path, small, 75)


@dataclass(frozen=True)
class _ScaledRings:
    """Outlines and holes in pixels of a picture, (n, 2) int32; read anew each time they are gone through."""

    foci: Foci
    scale: float
    """Pixels per level-0 px."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return (np.rint(ring * self.scale).astype(np.int32) for focus in self.foci for ring in focus.rings)


def _simplified(outlines: Polygons, picture: Picture) -> list[Polygon]:
    """Polygons for the screen, to half a pixel of the finest level, or coarser where they have too many vertices."""
    tolerance = picture.levels[-1][2] / 2
    while True:
        most = MAX_VERTICES if tolerance <= max(picture.coarsest.shape) else math.inf
        simple, vertices = list[Polygon](), 0
        for outline in outlines:
            simple.append(shapely.simplify(outline, tolerance, preserve_topology=True))
            vertices += shapely.get_num_coordinates(simple[-1])
            if vertices > most:
                break
        else:
            return simple
        tolerance *= 2


def _shape(polygon: Polygon) -> list[list[int]]:
    """Rings as x, y, x, y... in whole level-0 px."""
    return [
        np.rint(np.asarray(ring.coords)[:-1]).astype(int).ravel().tolist()
        for ring in (polygon.exterior, *polygon.interiors)
    ]


def _tissue_rings(tissue: np.ndarray, size: tuple[int, int]) -> list[list[int]]:
    """The outline of the tissue, rings as those of `_shape`."""
    shrink = min(1.0, TISSUE_PX / max(tissue.shape))
    small = cv2.resize(tissue.astype(np.uint8) * 255, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    found, _ = cv2.findContours((small > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    scale = np.array(size) / small.shape[1::-1]
    lines = [cv2.approxPolyDP(ring, 1.0, True)[:, 0] for ring in found]
    return [np.rint((line + 0.5) * scale).astype(int).ravel().tolist() for line in lines if len(line) > 2]
