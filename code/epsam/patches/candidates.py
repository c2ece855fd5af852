"""The look at one slide that comes before cutting: tissue, candidate windows and their tumour share."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from epsam.config.schema import Config
from epsam.errors import AnnotationError, EpsamError, SlideError
from epsam.patches.grid import candidate_windows, window_px
from epsam.patches.manifest import SlideRecord
from epsam.patches.stale import remove_patches
from epsam.runtime.failures import OF_THE_ITEM, guard, reason_of
from epsam.runtime.files import atomic
from epsam.runtime.log import logger
from epsam.slides.annotation import Annotation, read_annotation
from epsam.slides.openslide import bounds_origin
from epsam.slides.reader import open_slide
from epsam.slides.slide import Slide, overview
from epsam.slides.tissue import tissue_mask
from epsam.workspace import Workspace

SHEET_PX = 1200
"""Longest side of the thumbnail kept for the QA sheet."""


@dataclass(frozen=True)
class SlideCandidates:
    """What was found out about a slide."""

    signature: str
    """Of slide, annotation and settings that it was made from."""
    reader: str
    reader_version: str
    vendor: str
    size: tuple[int, int]
    """(width, height) of level 0."""
    mpp: tuple[float, float] | None
    read_px: int
    """Side of a window in level-0 pixels."""
    notes: tuple[str, ...]
    """Oddities for the log."""
    x: np.ndarray
    """(n,) int64, level 0; with y the corners of all candidate windows."""
    y: np.ndarray
    fraction: np.ndarray
    """(n,) float64 in [0, 1], tumour share of each window."""
    thumbnail: np.ndarray
    """(h, w, 3) uint8 RGB, at most SHEET_PX long."""
    tissue: np.ndarray
    """(h, w) bool, as large as the thumbnail."""


@dataclass(frozen=True)
class CandidatesTask:
    """What a worker needs to scan one slide."""

    record: SlideRecord
    config: Config
    workspace: Workspace

    @property
    def file(self) -> Path:
        """Where the scan is kept."""
        return self.workspace.state / "preprocess" / f"{self.record.slide}.npz"


def find_candidates(task: CandidatesTask) -> SlideCandidates | EpsamError:
    """The scan from its file when slide, annotation and settings are as they were, else made and kept.

    A scan made anew removes the patches that were cut from the slide before. Where the slide or its annotation
    cannot be used, the error is given, not raised.
    """
    try:
        with guard(task.record.path, task.record.annotation):
            return _kept_or_made(task)
    except OF_THE_ITEM as error:
        return error


def _kept_or_made(task: CandidatesTask) -> SlideCandidates:
    signature = _signature(task.record, task.config)
    scan = _load(task.file, signature)
    if scan is None:
        scan = _find_candidates(task.record, task.config, signature)
        remove_patches(task.workspace, {task.record.slide}, keep=set())
        _save(task.file, scan)
        scan = _load(task.file, signature) or scan  # the thumbnail as its file keeps it: after a stop, the same sheet
    return scan


def _signature(record: SlideRecord, config: Config) -> str:
    files = {}
    for path in filter(None, (record.path, record.annotation)):
        try:
            stat = path.stat()
        except OSError as error:
            raise SlideError(
                f"{path}: cannot be reached ({error.strerror}); is it a link to a place that is not mounted?"
            ) from None
        files[path.name] = [stat.st_size, stat.st_mtime_ns]
    settings = [
        config.slides.model_dump(mode="json", include={"reader", "asap_path", "groups"}),
        config.patches.model_dump(mode="json", include={"size_px", "target_mpp", "centre", "border", "tissue"}),
    ]
    return json.dumps([files, settings, record.override.mpp, record.override.tissue_threshold], sort_keys=True)


def _find_candidates(record: SlideRecord, config: Config, signature: str) -> SlideCandidates:
    settings = config.patches
    with open_slide(record.path, config.slides.reader, config.slides.asap_path) as slide:
        annotation = (
            read_annotation(record.annotation, config.slides.groups, bounds_origin(record.path), slide.size)
            if record.annotation
            else None
        )
        mpp = (record.override.mpp,) * 2 if record.override.mpp else slide.mpp
        read_px = window_px(settings, mpp)
        notes = _check_place(annotation, slide.size) if annotation else []
        rgb = overview(slide, settings.tissue.downsample)
        tissue = tissue_mask(rgb, settings.tissue, record.override.tissue_threshold)
        x, y = candidate_windows(tissue, slide.size, read_px, settings)
        if not len(x):
            raise SlideError(_why_empty(slide, tissue, read_px))
        fraction = annotation.fraction(x, y, read_px, read_px) if annotation else np.zeros(len(x))
        if annotation:
            annotated = (fraction > 0) | annotation.in_regions(x, y, read_px, read_px)
            x, y, fraction = x[annotated], y[annotated], fraction[annotated]
        return SlideCandidates(
            signature,
            slide.reader,
            slide.reader_version,
            slide.vendor,
            slide.size,
            mpp,
            read_px,
            tuple(notes),
            x,
            y,
            fraction,
            *_for_sheet(slide, rgb, tissue),
        )


def _check_place(annotation: Annotation, size: tuple[int, int]) -> list[str]:
    """Warnings about an annotation on a slide of this size; raises AnnotationError when all of it lies outside."""
    x0, y0, x1, y1 = annotation.bounds()
    width, height = size
    where = f"x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}; the slide is {width} x {height} px"
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise AnnotationError(
            f"{annotation.path}: all tumour outlines lie outside the slide ({where}); is it the "
            "annotation of another slide?"
        )
    warnings = list(annotation.warnings)
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        warnings.append(f"tumour outlines reach beyond the slide ({where})")
    return warnings


def _why_empty(slide: Slide, tissue: np.ndarray, read_px: int) -> str:
    width, height = slide.size
    if min(slide.size) < read_px:
        return f"{slide.path}: the slide is {width} x {height} px, smaller than one window of {read_px} px"
    if not tissue.any():
        return f"{slide.path}: no tissue found; if its stain is pale, give tissue_threshold in slides.overrides"
    return f"{slide.path}: no window of {read_px} px lies on its tissue ({tissue.mean():.2%} of the slide)"


def _for_sheet(slide: Slide, rgb: np.ndarray, tissue: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnail and tissue mask at the size of the QA sheet."""
    if max(rgb.shape) < min(SHEET_PX, max(slide.size)):
        try:
            rgb = overview(slide, max(1, max(slide.size) / SHEET_PX))
        except SlideError as error:
            logger.debug(f"{slide.path}: coarse QA sheet: {error}")
    scale = min(1, SHEET_PX / max(rgb.shape))
    size = tuple(max(1, round(side * scale)) for side in rgb.shape[1::-1])
    coarser = tissue.shape[1] < size[0]
    small = cv2.resize(
        tissue.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR if coarser else cv2.INTER_AREA
    )
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), small >= 128


_ARRAYS = ("x", "y", "fraction", "tissue")


_MAX_BYTES = 2**28
"""Of all arrays of a kept scan: a damaged or foreign file may unpack to anything."""


class _Facts(BaseModel):
    """What a scan's file says beside its arrays."""

    model_config = ConfigDict(extra="forbid")

    signature: str
    reader: str
    reader_version: str
    vendor: str
    size: tuple[PositiveInt, PositiveInt]
    mpp: tuple[PositiveFloat, PositiveFloat] | None
    read_px: PositiveInt
    notes: tuple[str, ...]


def _save(file: Path, scan: SlideCandidates) -> None:
    facts = json.dumps({name: getattr(scan, name) for name in _Facts.model_fields})
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(scan.thumbnail, cv2.COLOR_RGB2BGR))[1]
    with atomic(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, facts=np.array(facts), thumbnail=jpeg, **{n: getattr(scan, n) for n in _ARRAYS})


def _load(file: Path, signature: str) -> SlideCandidates | None:
    """The scan, or None when there is none, it was made from something else, or its file is damaged."""
    try:
        with zipfile.ZipFile(file) as parts:
            if sum(part.file_size for part in parts.infolist()) > _MAX_BYTES:
                return None
        with np.load(file, allow_pickle=False) as kept:
            facts = _Facts.model_validate_json(str(kept["facts"]))
            if facts.signature != signature:
                return None
            thumbnail = cv2.cvtColor(cv2.imdecode(kept["thumbnail"], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            scan = SlideCandidates(**dict(facts), thumbnail=thumbnail, **{name: kept[name] for name in _ARRAYS})
        return scan if _is_whole(scan) else None
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 zipfile, zlib, NumPy, JSON and OpenCV raise anything on damaged files
        logger.debug(f"{file}: damaged ({reason_of(error)}); made anew")
        return None


def _is_whole(scan: SlideCandidates) -> bool:
    """Whether arrays read from a file are those of a scan: types, shapes and ranges."""
    x, y, fraction, tissue = scan.x, scan.y, scan.fraction, scan.tissue
    return (
        x.ndim == 1
        and len(x) > 0
        and x.shape == y.shape == fraction.shape
        and x.dtype == y.dtype == np.int64
        and fraction.dtype == np.float64
        and tissue.dtype == bool
        and tissue.shape == scan.thumbnail.shape[:2]
        and all(
            bool((corner >= 0).all() and (corner < side).all()) for corner, side in zip((x, y), scan.size, strict=True)
        )
        and bool(((fraction >= 0) & (fraction <= 1)).all())
    )
