"""ASAP's XML annotations, read as a stream so that no file costs more memory than its coordinates."""

from array import array
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import XMLParser

from epsam.errors import AnnotationError
from epsam.runtime.text import listed
from epsam.slides.outline import Outline, check_coordinates, shown

AREAS = ("Polygon", "Rectangle", "Spline")
"""Types that enclose an area; ASAP's masks join the points of all three by straight lines."""
NO_AREAS = ("Dot", "PointSet", "Measurement")
MAX_BYTES = 512 * 2**20
"""Camelyon's longest file has 2.5 MB; one of `./infer.sh` with 50,000 foci has about 430 MB."""
MAX_TAG_BYTES = 2**20
MAX_ELEMENTS = 10_000_000
CHUNK = 2**16
ROOT = "ASAP_Annotations"
ANNOTATION = [ROOT, "Annotations", "Annotation"]
COORDINATE = [*ANNOTATION, "Coordinates", "Coordinate"]
GROUP = [ROOT, "AnnotationGroups", "Group"]


def read_asap_xml(path: Path) -> tuple[list[Outline], list[str]]:
    """Outlines in the order of the file, points sorted by Order, and warnings about what is odd.

    Raises AnnotationError when the file is damaged, hostile or too large.
    """
    content = _Content(path)
    _parse(path, content)
    outlines, warnings = content.outlines, content.warnings
    flat = Counter(outline.shape for outline in outlines if outline.shape in NO_AREAS)
    if flat:
        warnings.append("annotations without an area are left out: " + ", ".join(f"{n} {t}" for t, n in flat.items()))
    used = {outline.group for outline in outlines} - set(content.parent_of) - {"None"}
    if used:
        warnings.append(f"group {_listed(used)} is used but not declared under AnnotationGroups")
    return [
        Outline(o.name, o.group, o.rings, content.parents(o.group), o.shape)
        for o in outlines
        if o.shape not in NO_AREAS
    ], warnings


def _listed(names: set[str], most: int = 10) -> str:
    return listed(map(shown, sorted(names)), most)


def _parse(path: Path, content: "_Content") -> None:
    parser = XMLParser(target=content)
    since_tag = 0
    try:
        if path.stat().st_size > MAX_BYTES:
            raise AnnotationError(f"{path}: larger than {MAX_BYTES >> 20} MiB, too large for the annotation of a slide")
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                end = chunk.rfind(b">")
                since_tag = since_tag + len(chunk) if end < 0 else len(chunk) - end
                if since_tag > MAX_TAG_BYTES:
                    raise AnnotationError(
                        f"{path}: holds a tag or text of more than {MAX_TAG_BYTES >> 20} MiB, which "
                        "ASAP never writes; get the file from its source again"
                    )
                parser.feed(chunk)
        parser.close()
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such annotation file") from None
    except DefusedXmlException as error:
        raise AnnotationError(
            f"{path}: refused, the XML defines entities ({type(error).__name__}), which ASAP never "
            "writes; get the file from its source again"
        ) from None
    except (ParseError, OSError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path}: not whole or not XML ({shown(error)}); download it again") from None


class _Content:
    """Target of the XML parser: keeps coordinates as numbers and nothing of the rest."""

    def __init__(self, path: Path):
        self.path = path
        self.outlines: list[Outline] = []
        self.warnings: list[str] = []
        self.parent_of: dict[str, str] = {}
        self._open: list[str] = []
        self._elements = 0
        self._attributes: dict[str, str] = {}
        self._xy, self._order = array("d"), array("q")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise AnnotationError(f"{self.path}: holds more than {MAX_ELEMENTS} elements, too many for a slide")
        if not self._open and tag != ROOT:
            raise AnnotationError(
                f"{self.path}: not an annotation of ASAP (its root is {shown(tag)}, not {ROOT}); export it as GeoJSON from "
                "QuPath, or draw it in ASAP"
            )
        self._open.append(tag)
        if self._open == ANNOTATION:
            self._attributes = {
                key: attributes.get(key, default).strip()
                for key, default in (("Name", ""), ("Type", "Polygon"), ("PartOfGroup", "None"))
            }
            self._xy, self._order = array("d"), array("q")
        elif self._open == COORDINATE:
            self._add_point(attributes)
        elif self._open == GROUP:
            self.parent_of[attributes.get("Name", "").strip()] = attributes.get("PartOfGroup", "None").strip()

    def end(self, tag: str) -> None:
        if self._open == ANNOTATION:
            self._add_outline()
        self._open.pop()

    def close(self) -> None:
        """Part of the parser's protocol."""

    @property
    def _where(self) -> str:
        return f"{self.path}: annotation `{shown(self._attributes['Name'])}`"

    def _add_point(self, attributes: dict[str, str]) -> None:
        try:
            self._xy.extend((_number(attributes.get("X")), _number(attributes.get("Y"))))
            self._order.append(int(attributes.get("Order", len(self._order))))
        except (ValueError, OverflowError) as error:
            raise AnnotationError(f"{self._where} has a coordinate that is no number ({shown(error)})") from None

    def _add_outline(self) -> None:
        points, order = np.array(self._xy).reshape(-1, 2), np.array(self._order)
        check_coordinates(self._where, points)
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            self.warnings.append(
                f"annotation `{shown(self._attributes['Name'])}`: Order does not count 0 to "
                f"{len(order) - 1}; points are taken by rising Order"
            )
        shape = self._attributes["Type"]
        shape = next((known for known in (*AREAS, *NO_AREAS) if known.casefold() == shape.casefold()), shape)
        rings = (points[np.argsort(order, kind="stable")],) if shape in AREAS else ()
        self.outlines.append(Outline(self._attributes["Name"], self._attributes["PartOfGroup"], rings, (), shape))

    def parents(self, group: str) -> tuple[str, ...]:
        """Groups that hold `group`, from the nearest on."""
        found: list[str] = []
        parent = self.parent_of.get(group, "None")
        while parent != "None" and parent not in (group, *found):
            found.append(parent)
            parent = self.parent_of.get(parent, "None")
        return tuple(found)


def _number(text: str | None) -> float:
    """A decimal number with a point or, as some locales make ASAP write it, a comma."""
    if text is None:
        raise ValueError("X or Y is missing")
    return float(text.replace(",", "."))
