"""Write the demo's slides: drawn tissue as tiled pyramidal TIFFs with ASAP XML, as Camelyon16 has them."""

import os
import struct
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import tifffile

from epsam.demo.tissue import draw_stain, draw_tissue
from epsam.errors import DataError, SlideError
from epsam.runtime.files import atomic, write_text
from epsam.runtime.log import logger, progress
from epsam.runtime.seeds import generator
from epsam.runtime.workers import run_tasks

MPP = 0.5
TILE = 256
DRAWING = 6
"""Raise when the drawing changes, so that slides of before are drawn again."""
OWN_SLIDE = "EP-SAM demo slide "
"""Beginning of the TIFF description of a drawn slide; no other file is ever replaced."""
OWN_XML = "EP-SAM demo annotation"
"""Comment at the beginning of a drawn slide's XML."""
MARKER = "DEMO.txt"
MARKER_TEXT = "This folder was made by EP-SAM's demo: it draws its slides here and may draw them again.\n"


def make_demo(
    dataset: Path, seed: int = 0, *, tumour: int = 10, normal: int = 4, size_px: int = 2560, workers: int | None = None
) -> None:
    """Draw images/{tumor,normal}_NNN.tif and annotations/tumor_NNN.xml under `dataset`.

    Slides are about `size_px` wide and high at 0.5 um/px. The same arguments give the same pixels, whatever
    the number of `workers` (processes; by default one per core, and none besides this one for 1). Slides that
    are complete and were drawn with the same arguments are left as they are.

    Raises DataError, before anything is written, for a folder that the demo did not make and for a file that is in
    the way and is not its own drawing; DataError when a process that draws dies.
    """
    dataset = Path(dataset)
    names = [f"tumor_{n:03d}" for n in range(1, tumour + 1)] + [f"normal_{n:03d}" for n in range(1, normal + 1)]
    _claim_folder(dataset)
    _check_own(dataset, names)
    missing = [name for name in names if not _is_whole(dataset, name, _describe(name, seed, size_px))]
    logger.info(f"demo: {len(names)} slides, {len(names) - len(missing)} of them there already")
    jobs = [(dataset, name, seed, size_px) for name in missing]
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    with progress(total=len(jobs), desc="demo slides", unit="slide") as bar:
        for job, failure in run_tasks(_make_slide, jobs, workers if workers > 1 else 0):
            if isinstance(failure, SlideError):
                raise DataError(
                    f"{job[0]}: the process that drew {job[1]} died, probably for lack of memory; free some and run "
                    "the same command again: it continues with the slides that are missing"
                )
            bar.update()


def _make_slide(job: tuple[Path, str, int, int]) -> None:
    make_slide(*job)


def make_slide(dataset: Path, name: str, seed: int, size_px: int) -> None:
    """Draw one slide; its XML is written first, so that a slide that exists is complete."""
    cv2.setNumThreads(1)
    rng = generator("demo", seed, name, size_px)
    height, width = (int(n) for n in np.rint(size_px * rng.uniform(0.92, 1.08, 2)))
    stain = draw_stain(rng)
    picture, mask = draw_tissue((height, width), name.startswith("tumor"), stain, rng)
    if name.startswith("tumor"):
        write_annotation(dataset / "annotations" / f"{name}.xml", mask)
    write_slide(dataset / "images" / f"{name}.tif", picture, _describe(name, seed, size_px))


def write_slide(path: Path, picture: np.ndarray, description: str) -> None:
    """Write RGB uint8 (H, W, 3) as a tiled JPEG pyramid of top-level pages, halved down to under 512 px."""
    levels = [picture]
    while min(levels[-1].shape[:2]) > 512:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    with atomic(path) as temporary, tifffile.TiffWriter(temporary) as tif:
        for number, level in enumerate(levels):
            per_cm = 1e4 / (MPP * picture.shape[1] / level.shape[1])
            tif.write(
                level,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 88},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if number else 0,
                description=None if number else description,
                metadata=None,
                software=False,
            )


def write_annotation(path: Path, mask: np.ndarray) -> None:
    """Outline a bool mask (H, W) in ASAP's XML: regions in group Tumor, the holes in them in Exclusion.

    Vertices lie on the outermost pixels' centres, in level-0 px.
    """
    root = ElementTree.Element("ASAP_Annotations")
    root.append(ElementTree.Comment(f" {OWN_XML} "))
    annotations = ElementTree.SubElement(root, "Annotations")
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    order = sorted(range(len(contours)), key=lambda k: tree[0][k][3] >= 0)
    for number, k in enumerate(order):
        hole = tree[0][k][3] >= 0
        outline = cv2.approxPolyDP(contours[k], 0.8, closed=True)[:, 0]
        node = ElementTree.SubElement(
            annotations,
            "Annotation",
            Name=f"Annotation {number}",
            Type="Polygon",
            PartOfGroup="Exclusion" if hole else "Tumor",
            Color="#64FE2E" if hole else "#F4FA58",
        )
        coordinates = ElementTree.SubElement(node, "Coordinates")
        for position, (x, y) in enumerate(outline):
            ElementTree.SubElement(coordinates, "Coordinate", Order=str(position), X=str(x), Y=str(y))
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    for name, color in (("Tumor", "#F4FA58"), ("Exclusion", "#64FE2E")):
        group = ElementTree.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=color)
        ElementTree.SubElement(group, "Attributes")
    ElementTree.indent(root)
    with atomic(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _describe(name: str, seed: int, size_px: int) -> str:
    return f"{OWN_SLIDE}{name}, seed {seed}, {size_px} px, drawing {DRAWING}"


def _is_whole(dataset: Path, name: str, description: str) -> bool:
    if name.startswith("tumor") and not (dataset / "annotations" / f"{name}.xml").is_file():
        return False
    return _description(dataset / "images" / f"{name}.tif") == description


def _claim_folder(dataset: Path) -> None:
    """Mark `dataset` as the demo's when it is absent or empty; DataError when it is anybody else's."""
    marker = dataset / MARKER
    if marker.is_file() and marker.read_bytes() == MARKER_TEXT.encode():
        return
    if dataset.exists() and (not dataset.is_dir() or any(dataset.iterdir())):
        raise DataError(
            f"{dataset} was not made by the demo, which draws only into a folder of its own; move its files, "
            f"e.g. to another name in {dataset.parent}"
        )
    write_text(marker, MARKER_TEXT)


def _check_own(dataset: Path, names: list[str]) -> None:
    """Raise DataError when a file of a drawing's name is not a drawing."""
    for name in names:
        slide, xml = dataset / "images" / f"{name}.tif", dataset / "annotations" / f"{name}.xml"
        own = {slide: _description(slide).startswith(OWN_SLIDE), xml: OWN_XML.encode() in _head(xml)}
        for path, is_own in own.items():
            if (path.exists() or path.is_symlink()) and not is_own:
                raise DataError(f"{path} is not a drawing of the demo, which replaces nothing else; move it away")


def _description(slide: Path) -> str:
    """The TIFF description of a slide; empty when it is not there or no TIFF."""
    try:
        with tifffile.TiffFile(slide) as tif:
            return tif.pages[0].description
    except (OSError, ValueError, IndexError, struct.error, tifffile.TiffFileError):
        return ""


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(512)
