"""Outlines as files of the programs people use: GeoJSON for QuPath, XML for ASAP."""

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import shapely

from epsam.inference.foci import Foci, Focus
from epsam.runtime.files import atomic
from epsam.visualization.palette import EXCLUDED, PREDICTION, css

QUPATH_TUMOUR = (200, 0, 0)
"""QuPath's own colour of its class Tumor, which it shows whatever a file says."""


def write_geojson(path: Path, foci: Foci, mpp: tuple[float, float] | None, origin: tuple[int, int] = (0, 0)) -> None:
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
        "geometry": {"type": "Polygon", "coordinates": [(ring - origin).tolist() for ring in focus.rings]},
        "properties": {
            "objectType": "annotation",
            "name": f"Focus {number}",
            "classification": {"name": "Tumor", "color": QUPATH_TUMOUR},
            "measurements": measurements,
        },
    }


def write_asap_xml(path: Path, foci: Foci) -> None:
    """Write ASAP's XML with Camelyon16's groups: outlines are `Tumor`, holes `Exclusion`, painted after them.

    Positions are level-0 px of the whole slide, as ASAP counts, whatever the bounds.
    """
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write('<?xml version="1.0" encoding="utf-8"?>\n<ASAP_Annotations>\n\t<Annotations>\n')
        number = 0
        for group, colour, polygons in (
            ("Tumor", PREDICTION, foci.outlines),
            ("Exclusion", EXCLUDED, foci.exclusions),
        ):
            for polygon in polygons:
                stream.write(_annotation(number, group, colour, polygon.exterior))
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
