"""Candidate windows of one slide, found before any patch is cut: tissue, windows and their tumour share."""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from epsam.config.schema import Config
from epsam.errors import AnnotationError, EpsamError, SlideError
from epsam.patches.manifest import SlideRecord
from epsam.patches.stale import remove_patches
from epsam.patches.windows import find_windows
from epsam.runtime.failures import OF_THE_ITEM, guard, reason_of
from epsam.runtime.files import atomic, sha256
from epsam.runtime.log import logger
from epsam.slides.formats import slide_stamp
from epsam.slides.overview import Thumbnail, overview, overview_size
from epsam.slides.reader import open_slide
from epsam.slides.slide import Slide, differing_mpp
from epsam.slides.tissue import find_tissue
from epsam.workspace import Workspace

SHEET_PX = 1200
"""Longest side of the thumbnail kept for the QA sheet."""


@dataclass(frozen=True)
class SlideCandidates:
    """The candidate windows of a slide, and what its file says."""

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
    """(n,) float64 in [0, 1], tumour share of each window; NaN where only its label is known."""
    label: np.ndarray
    """(n,) int8: 1 holds tumour, 0 does not."""
    by_hand: bool
    """True: labels.csv names these windows, and all of them become patches."""

    def patch_mpp(self, size_px: int) -> float | None:
        """um per pixel of patches of `size_px`; None where the slide does not say its resolution."""
        return None if self.mpp is None else round(sum(self.mpp) / 2 * self.read_px / size_px, 5)


@dataclass(frozen=True)
class SlidePictures:
    """What the QA sheet of a slide shows; kept in the file alone, as those of all slides fill the memory."""

    thumbnail: np.ndarray
    """(h, w, 3) uint8 RGB, at most SHEET_PX long."""
    tissue: np.ndarray
    """(h, w) bool, as large as the thumbnail."""


@dataclass(frozen=True)
class CandidatesTask:
    """What a worker needs to find the candidates of one slide."""

    record: SlideRecord
    config: Config
    workspace: Workspace

    @property
    def file(self) -> Path:
        """Where the candidates are kept."""
        return self.workspace.state / "preprocess" / f"{self.record.slide}.npz"


def find_candidates(task: CandidatesTask) -> SlideCandidates | EpsamError:
    """The candidates from their file when slide, annotation, labels and settings are unchanged, else found and kept.

    Finding them again removes the patches that were cut from the slide before. Where the slide or its annotation
    cannot be used, the error is given, not raised.
    """
    try:
        with guard(task.record.path, task.record.annotation):
            return _kept_or_made(task)
    except OF_THE_ITEM as error:
        return error


def _kept_or_made(task: CandidatesTask) -> SlideCandidates:
    signature = _signature(task.record, task.config)
    if kept := _load(task.file, signature):
        return kept[0]
    candidates, pictures = _find_candidates(task.record, task.config, signature)
    remove_patches(task.workspace, {task.record.slide}, keep=set())
    _save(task.file, candidates, pictures)
    return candidates


def load_pictures(task: CandidatesTask, candidates: SlideCandidates) -> SlidePictures:
    """The pictures that were kept with candidates; raises SlideError when its file is gone or damaged."""
    if kept := _load(task.file, candidates.signature):
        return kept[1]
    raise SlideError(f"{task.file}: is gone or damaged since the slide was looked at; run the stage again")


def _signature(record: SlideRecord, config: Config) -> str:
    settings = [
        config.slides.model_dump(mode="json", include={"reader", "asap_path", "groups"}),
        config.patches.model_dump(mode="json", include={"size_px", "target_mpp", "centre", "border", "tissue"}),
    ]
    labels = record.labels
    windows = labels and [
        [labels.x.tolist(), labels.y.tolist(), labels.label.tolist()],
        [labels.width, labels.level, labels.mpp],
    ]
    info = [record.info.mpp, record.info.origin, record.info.scale, record.info.tissue_threshold, record.all_tumour]
    parts = [slide_stamp(record.path), _content(record.annotation), settings, info, windows]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content(path: Path | None) -> str:
    try:
        return sha256(path) if path else ""
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from None


def _find_candidates(record: SlideRecord, config: Config, signature: str) -> tuple[SlideCandidates, SlidePictures]:
    settings = config.patches
    with open_slide(record.path, config.slides.reader, config.slides.asap_path) as slide:
        mpp = (record.info.mpp,) * 2 if record.info.mpp else slide.mpp
        thumbnail = Thumbnail(*overview_size(slide, settings.tissue.downsample), SHEET_PX)
        tissue = find_tissue(slide, settings.tissue, record.info.tissue_threshold, thumbnail)
        windows = find_windows(record, slide, mpp, tissue, config)
        if note := differing_mpp(record.info.mpp, slide.mpp):
            windows = replace(windows, notes=(note, *windows.notes))
        candidates = SlideCandidates(
            signature=signature,
            reader=slide.reader,
            reader_version=slide.reader_version,
            vendor=slide.vendor,
            size=slide.size,
            mpp=mpp,
            by_hand=record.labels is not None,
            **asdict(windows),
        )
        return candidates, _for_sheet(slide, thumbnail.picture(), tissue)


def _for_sheet(slide: Slide, rgb: np.ndarray, tissue: np.ndarray) -> SlidePictures:
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
    return SlidePictures(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), small >= 128)


_ARRAYS = ("x", "y", "fraction", "label")


_MAX_BYTES = 2**28
"""Of all arrays of kept candidates: a damaged or foreign file may unpack to anything."""


class _Facts(BaseModel):
    """What a file of candidates says beside its arrays."""

    model_config = ConfigDict(extra="forbid")

    signature: str
    reader: str
    reader_version: str
    vendor: str
    size: tuple[PositiveInt, PositiveInt]
    mpp: tuple[PositiveFloat, PositiveFloat] | None
    read_px: PositiveInt
    notes: tuple[str, ...]
    by_hand: bool


def _save(file: Path, candidates: SlideCandidates, pictures: SlidePictures) -> None:
    facts = json.dumps({name: getattr(candidates, name) for name in _Facts.model_fields})
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(pictures.thumbnail, cv2.COLOR_RGB2BGR))[1]
    arrays = {name: getattr(candidates, name) for name in _ARRAYS}
    with atomic(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, facts=np.array(facts), thumbnail=jpeg, tissue=pictures.tissue, **arrays)


def _load(file: Path, signature: str) -> tuple[SlideCandidates, SlidePictures] | None:
    """The candidates and their pictures; None without a file, or for one that is damaged or of other data or settings."""
    try:
        with zipfile.ZipFile(file) as parts:
            if sum(part.file_size for part in parts.infolist()) > _MAX_BYTES:
                return None
        with np.load(file, allow_pickle=False) as kept:
            facts = _Facts.model_validate_json(str(kept["facts"]))
            if facts.signature != signature:
                return None
            jpeg = cv2.imdecode(kept["thumbnail"], cv2.IMREAD_COLOR)
            if jpeg is None:
                raise ValueError("its thumbnail is no JPEG")
            thumbnail = cv2.cvtColor(jpeg, cv2.COLOR_BGR2RGB)
            candidates = SlideCandidates(**dict(facts), **{name: kept[name] for name in _ARRAYS})
            pictures = SlidePictures(thumbnail, kept["tissue"])
        return (candidates, pictures) if _is_complete(candidates, pictures) else None
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 zipfile, zlib, NumPy, JSON and OpenCV raise anything on damaged files
        logger.debug(f"{file}: damaged ({reason_of(error)}); made again")
        return None


def _is_complete(candidates: SlideCandidates, pictures: SlidePictures) -> bool:
    """Whether arrays read from a file are those of candidates: types, shapes and ranges."""
    x, y, fraction, label, tissue = candidates.x, candidates.y, candidates.fraction, candidates.label, pictures.tissue
    return (
        x.ndim == 1
        and len(x) > 0
        and x.shape == y.shape == fraction.shape == label.shape
        and x.dtype == y.dtype == np.int64
        and fraction.dtype == np.float64
        and label.dtype == np.int8
        and tissue.dtype == bool
        and tissue.shape == pictures.thumbnail.shape[:2]
        and all(
            bool((corner >= 0).all() and (corner < side).all())
            for corner, side in zip((x, y), candidates.size, strict=True)
        )
        and bool((((fraction >= 0) & (fraction <= 1)) | np.isnan(fraction)).all())
        and bool(((label == 0) | (label == 1)).all())
    )
