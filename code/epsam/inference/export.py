"""Outlines as files of the programs people use: GeoJSON for QuPath, XML for ASAP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon
from shapely.ops import split

from epsam.inference.outlines import Focus
from epsam.runtime.files import atomic
from epsam.visualization.palette import EXCLUDED, PREDICTION, css

QUPATH_TUMOUR = (200, 0, 0)
"""QuPath's own colour of its class Tumor, which it shows whatever a file says."""


def write_geojson(
    path: Path, foci: list[Focus], mpp: tuple[float, float] | None, origin: tuple[int, int] = (0, 0)
) -> None:
    """Write a FeatureCollection of polygons (RFC 7946 geometry) as QuPath exports and imports it.

    `origin`: level-0 position of openslide.bounds-x/y where the slide has them: QuPath shows the slide from
    there, so its coordinates count from there. Area in mm2 where `mpp` (um/px) is known, in px2 always.
    """
    # A feature a line: short, and still readable in an editor; one by one, as numbers take ten times the memory of outlines.
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write('{"type":"FeatureCollection","features":[\n')
        for number, focus in enumerate(foci, 1):
            feature = json.dumps(_feature(number, focus, mpp, origin), separators=(",", ":"))
            stream.write(feature + (",\n" if number < len(foci) else ""))
        stream.write("\n]}\n")


def _feature(number: int, focus: Focus, mpp: tuple[float, float] | None, origin: tuple[int, int]) -> dict[str, Any]:
    area = focus.polygon.area
    measurements = {"Tumor probability": round(focus.probability, 4), "Area px^2": area}
    if mpp is not None:
        measurements["Area mm^2"] = round(area * mpp[0] * mpp[1] * 1e-6, 6)
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [_positions(ring, origin) for ring in _rings(focus)]},
        "properties": {
            "objectType": "annotation",
            "name": f"Focus {number}",
            "classification": {"name": "Tumor", "color": QUPATH_TUMOUR},
            "measurements": measurements,
        },
    }


def _rings(focus: Focus) -> Iterator[shapely.LinearRing]:
    yield focus.polygon.exterior
    yield from focus.polygon.interiors


def _positions(ring: shapely.LinearRing, origin: tuple[int, int]) -> list[list[float]]:
    return (np.asarray(ring.coords) - origin).tolist()


def write_asap_xml(path: Path, foci: list[Focus]) -> None:
    """Write ASAP's XML with Camelyon16's groups: outlines are `Tumor`, holes `Exclusion`, painted after them.

    Positions are level-0 px of the whole slide, as ASAP counts, whatever the bounds.
    """
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write('<?xml version="1.0" encoding="utf-8"?>\n<ASAP_Annotations>\n\t<Annotations>\n')
        number = 0
        for group, colour, rings in (
            ("Tumor", PREDICTION, (f.polygon.exterior for f in foci)),
            ("Exclusion", EXCLUDED, exclusions(foci)),
        ):
            for ring in rings:
                stream.write(_annotation(number, group, colour, ring))
                number += 1
        stream.write("\t</Annotations>\n\t<AnnotationGroups>\n")
        for group, colour in (("Tumor", PREDICTION), ("Exclusion", EXCLUDED)):
            stream.write(
                f'\t\t<Group Name="{group}" PartOfGroup="None" Color="{css(colour)}">\n'
                "\t\t\t<Attributes />\n\t\t</Group>\n"
            )
        stream.write("\t</AnnotationGroups>\n</ASAP_Annotations>\n")


def _annotation(number: int, group: str, colour: tuple[int, int, int], ring: shapely.LinearRing) -> str:
    corners = "".join(
        f'\t\t\t\t<Coordinate Order="{i}" X="{x:.12g}" Y="{y:.12g}" />\n' for i, (x, y) in enumerate(ring.coords[:-1])
    )
    return (
        f'\t\t<Annotation Name={quoteattr(f"{group} {number}")} Type="Polygon" PartOfGroup="{group}" '
        f'Color="{css(colour)}">\n\t\t\t<Coordinates>\n{corners}\t\t\t</Coordinates>\n\t\t</Annotation>\n'
    )


def exclusions(foci: list[Focus]) -> Iterator[shapely.LinearRing]:
    """Holes of all foci as simple rings that cover no tumour.

    Exclusions are painted last, so tumour inside a hole would be lost: such a hole is cut into pieces around it.
    """
    tree = shapely.STRtree([f.polygon for f in foci])
    for focus in foci:
        for ring in focus.polygon.interiors:
            hole = Polygon(ring)
            inside = [foci[i].polygon for i in tree.query(hole, predicate="contains")]
            empty = hole.difference(shapely.unary_union([Polygon(p.exterior) for p in inside])) if inside else hole
            for piece in shapely.get_parts(empty):
                yield from (simple.exterior for simple in _without_holes(piece))


def _without_holes(polygon: Polygon) -> Iterator[Polygon]:
    """Cut a polygon with holes by vertical lines through them into polygons without holes."""
    if not polygon.interiors:
        yield polygon
        return
    x = Polygon(polygon.interiors[0]).representative_point().x
    _, y0, _, y1 = polygon.bounds
    for piece in split(polygon, LineString([(x, y0 - 1), (x, y1 + 1)])).geoms:
        yield from _without_holes(piece)
