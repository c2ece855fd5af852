"""QuPath's GeoJSON annotations, read feature by feature so that memory grows with the outlines alone."""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from epsam.errors import AnnotationError
from epsam.runtime.text import UTF16_HEADS
from epsam.slides.outline import Outline, check_coordinates, shown

WHITESPACE = re.compile(r"[ \t\n\r]*")
MAX_BYTES = 256 * 2**20
MAX_COUNTS = {"[": 10_000_000, "{": 1_000_000, ",": 25_000_000}
"""Of characters in the file: each stands for a list, an object or a value that takes memory while it is read."""
OLD_IDS = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
}
"""Feature ids of QuPath before 0.3, in place of objectType."""


def read_geojson(path: Path, origin: tuple[float, float] = (0, 0)) -> tuple[list[Outline], list[str]]:
    """Outlines in the order of the file, and warnings about what is odd; plain or gzip.

    The group of an annotation is the name of its classification, None without one; that of a detection, cell or tile
    is `detection: <name>` and so on. `origin` (x, y in level-0 px) is added to all coordinates: QuPath counts from
    openslide.bounds-x/y. Raises AnnotationError when the file is damaged, hostile or too large.
    """
    outlines: list[Outline] = []
    flat: Counter[str] = Counter()
    for number, feature in enumerate(_features(path, _text(path)), 1):
        try:
            outlines += _outlines(path, number, feature, origin, flat)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise AnnotationError(
                f"{path}: feature {number} is no GeoJSON as QuPath writes it ({shown(error)}); export it again"
            ) from None
    warnings = []
    if flat:
        warnings.append(
            "annotations without an area are left out: "
            + ", ".join(f"{n} {shown(kind)}" for kind, n in sorted(flat.items())[:10])
        )
    return outlines, warnings


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(path) as stream:
                data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise AnnotationError(f"{path}: larger than {MAX_BYTES >> 20} MiB, too large for the annotation of a slide")
        text = data.decode("utf-16" if data.startswith(UTF16_HEADS) else "utf-8-sig")
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such annotation file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: not whole or not GeoJSON ({shown(error)}); export it again") from None
    for character, most in MAX_COUNTS.items():
        if text.count(character) > most:
            raise AnnotationError(f"{path}: holds more than {most} lists, objects or values, too many for a slide")
    return text


def _features(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """The features of a FeatureCollection, a plain list or a single Feature, one after the other."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    try:
        at = _skip(text, 0)
        if text[at] == "[":
            at = yield from _items(text, at, decoder)
        else:
            first, found = at, False
            at = _expect(text, at, "{")
            while text[at] != "}":
                key, at = decoder.raw_decode(text, at)
                at = _expect(text, at, ":")
                if key == "features":
                    at = yield from _items(text, at, decoder)
                    found = True
                else:
                    _, at = decoder.raw_decode(text, at)
                    at = _skip(text, at)
                if text[at] == ",":
                    at = _skip(text, at + 1)
            at = _skip(text, at + 1)
            if not found:
                feature, _ = decoder.raw_decode(text, first)
                if feature.get("type") != "Feature":
                    raise ValueError("neither FeatureCollection, Feature nor list of them")
                yield feature
        if at != len(text):
            raise ValueError("something follows its end")
    except (ValueError, IndexError, RecursionError) as error:
        raise AnnotationError(f"{path}: not whole or not GeoJSON ({shown(error)}); export it again") from None


def _items(text: str, at: int, decoder: json.JSONDecoder) -> Generator[dict[str, Any], None, int]:
    """The items of the list that begins at `at`; returns where the text goes on after it."""
    at = _expect(text, at, "[")
    while text[at] != "]":
        item, at = decoder.raw_decode(text, at)
        yield item
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
        elif text[at] != "]":
            raise ValueError(f"a comma is missing at character {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    return at if (space := WHITESPACE.match(text, at)) is None else space.end()


def _expect(text: str, at: int, character: str) -> int:
    at = _skip(text, at)
    if text[at] != character:
        raise ValueError(f"`{character}` is missing at character {at}")
    return _skip(text, at + 1)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _outlines(
    path: Path, number: int, feature: dict[str, Any], origin: tuple[float, float], flat: Counter[str]
) -> Iterator[Outline]:
    """The polygons of one feature; kinds of geometry without an area are counted in `flat`."""
    about = feature.get("properties") or {}
    kind = about.get("objectType") or OLD_IDS.get(str(feature.get("id")), "annotation")
    group = _class_name(about.get("classification"))
    group = group if kind == "annotation" else f"{kind}: {group}"
    geometry = feature.get("geometry")
    name = str(about.get("name") or f"feature {number}")
    for polygon in _polygons(geometry, flat):
        rings = []
        for ring in polygon:
            if not ring:
                continue
            points = np.array([position[:2] for position in ring])
            if points.dtype.kind not in "iuf" or points.ndim != 2 or points.shape[1] != 2:
                raise ValueError("positions are no pairs of numbers")
            points = points.astype(np.float64) + origin
            check_coordinates(f"{path}: annotation `{shown(name)}`", points)
            closed = len(points) > 1 and (points[0] == points[-1]).all()
            rings.append(points[:-1] if closed else points)
        if rings:
            yield Outline(name, group, tuple(rings), optional=kind != "annotation")


def _polygons(geometry: dict[str, Any] | None, flat: Counter[str]) -> Iterator[Any]:
    """The rings of each polygon of a geometry or of a collection of them; others are counted in `flat`."""
    if geometry is None:
        flat["no geometry"] += 1
        return
    for part in geometry["geometries"] if geometry["type"] == "GeometryCollection" else [geometry]:
        shape = str(part["type"])
        if shape in ("Polygon", "MultiPolygon"):
            yield from [part["coordinates"]] if shape == "Polygon" else part["coordinates"]
        else:
            flat[shape] += 1


def _class_name(classification: Any) -> str:
    """QuPath writes {"name": ...}, or {"names": [...]} for a class derived from others."""
    if classification is None:
        return "None"
    if isinstance(classification, str):
        return classification.strip()
    name = classification.get("name") or ": ".join(classification.get("names") or ["None"])
    return str(name).strip()
