"""Cutting the chosen windows out of the slides."""

import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import imagecodecs
import numpy as np

from epsam.config.schema import Config
from epsam.errors import EpsamError
from epsam.patches.candidates import SlideCandidates
from epsam.patches.manifest import SlideRecord, usable
from epsam.patches.placement import AnnotationSource
from epsam.patches.tables import patch_names
from epsam.runtime.dask_tasks import run_shared_tasks
from epsam.runtime.failures import OF_THE_ITEM, guard, log_failure
from epsam.runtime.files import atomic, write_png
from epsam.runtime.log import logger, progress
from epsam.runtime.workers import READER_BYTES, affordable
from epsam.slides.annotation import Annotation
from epsam.slides.reader import open_slide
from epsam.slides.slide import Slide, read_window
from epsam.workspace import Workspace

CHUNK = 64
"""Windows of one task: small enough to share a slide among workers, large enough to keep its tiles in the cache."""


BLOCK = 8
"""Windows along the side of the squares that are cut one after the other."""
STORED_BYTES = 0xFFFF
"""Most that a block of a deflate stream holds uncompressed."""


@dataclass(frozen=True)
class Window:
    """A window to be cut: name of the patch and level-0 corner."""

    name: str
    x: int
    y: int
    has_tumour: bool


@dataclass(frozen=True)
class ExtractionTask:
    """Windows of one slide that lie close together."""

    slide: str
    path: Path
    backend: str
    asap_path: Path | None
    annotation: AnnotationSource | None
    read_px: int
    size_px: int
    folder: Path
    """Folder of the split."""
    windows: tuple[Window, ...]


def extract(
    records: list[SlideRecord],
    candidates: Mapping[str, SlideCandidates],
    purposes: Mapping[str, np.ndarray],
    config: Config,
    workspace: Workspace,
) -> None:
    """Cut the chosen windows; what is on disk already stays.

    Windows that cannot be read are removed from `purposes`; a slide of which none can be read fails.
    """
    tasks = [
        task
        for record in usable(records)
        for task in _tasks(record, candidates[record.slide], purposes[record.slide], config, workspace)
    ]
    total = sum(len(task.windows) for task in tasks)
    _check_room(total, config, workspace)
    failed: dict[str, dict[str, EpsamError]] = {}
    with progress(total=total, desc="patches", unit="patch") as bar:
        workers = affordable(config.worker_count, READER_BYTES)
        for task, result in run_shared_tasks(extract_windows, tasks, workers, workspace.state):
            bar.update(len(task.windows))
            if isinstance(result, EpsamError):
                result = dict.fromkeys((window.name for window in task.windows), result)
            if result:
                failed.setdefault(task.slide, {}).update(result)
    for record in usable(records):
        if record.slide in failed:
            _leave_out(record, candidates[record.slide], purposes[record.slide], failed[record.slide])


def _tasks(
    record: SlideRecord, slide_candidates: SlideCandidates, purpose: np.ndarray, config: Config, workspace: Workspace
) -> Iterator[ExtractionTask]:
    names = patch_names(record, slide_candidates)
    chosen = np.flatnonzero(purpose != "")
    order = chosen[reading_order(slide_candidates.x[chosen], slide_candidates.y[chosen], slide_candidates.read_px)]
    windows = [
        Window(names[i], int(slide_candidates.x[i]), int(slide_candidates.y[i]), bool(slide_candidates.label[i]))
        for i in order
    ]
    source = AnnotationSource.of(record.annotation, config.slides.groups, record.info) if record.annotation else None
    for first in range(0, len(windows), CHUNK):
        yield ExtractionTask(
            record.slide,
            record.path,
            slide_candidates.reader,
            config.slides.asap_path,
            source,
            slide_candidates.read_px,
            config.patches.size_px,
            workspace.split(record.split),
            tuple(windows[first : first + CHUNK]),
        )


def reading_order(x: np.ndarray, y: np.ndarray, read_px: int) -> np.ndarray:
    """Order in which neighbouring windows find their common tiles in the reader's cache: block by block, rows within."""
    block = BLOCK * read_px
    return np.lexsort((x, y // read_px, x // block, y // block))


def _check_room(patches: int, config: Config, workspace: Workspace) -> None:
    needed = patches * config.patches.size_px**2 * 3
    free = shutil.disk_usage(workspace.dataset).free
    if free < needed:
        logger.warning(
            f"{workspace.dataset}: {patches} patches take up to {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB "
            "are free; when the disk is full the stage stops, and goes on when it is called again"
        )


def _leave_out(
    record: SlideRecord, slide_candidates: SlideCandidates, purpose: np.ndarray, failed: Mapping[str, EpsamError]
) -> None:
    purpose[np.isin(patch_names(record, slide_candidates), list(failed))] = ""
    why = next(iter(failed.values()))
    if purpose.any():
        record.reason = f"{len(failed)} windows cannot be read and are left out: {why}"
        logger.warning(f"{record.slide}: {record.reason}")
        logger.debug(why.details)
    else:
        record.drop("failed", f"none of its {len(failed)} windows can be read: {why}")
        log_failure(record.slide, why)


def extract_windows(task: ExtractionTask) -> dict[str, EpsamError]:
    """Write the image and, for windows with tumour on annotated slides, the mask; files that are there stay as they are.

    Gives the error of each window that could not be read or painted, by name.
    """
    failed: dict[str, EpsamError] = {}
    for window in task.windows:
        try:
            with guard(task.path, task.annotation.path if task.annotation else None):
                _cut_window(task, window)
        except OF_THE_ITEM as error:
            failed[window.name] = error
    return failed


def _cut_window(task: ExtractionTask, window: Window) -> None:
    image, mask = (task.folder / kind / f"{window.name}.png" for kind in ("image", "mask"))
    pixels = tumour = None  # both are there before either is written
    if not image.is_file():
        pixels = read_window(
            _slide(task.path, task.backend, task.asap_path), window.x, window.y, task.read_px, task.size_px
        )
    if window.has_tumour and task.annotation and not mask.is_file():
        slide = _slide(task.path, task.backend, task.asap_path)
        tumour = _annotation(task.annotation, task.path, slide.size).mask(
            window.x, window.y, task.size_px, task.size_px, task.read_px / task.size_px
        )
    if pixels is not None:
        write_stored_png(image, pixels)
    if tumour is not None:
        write_png(mask, tumour)


def write_stored_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as PNG without compression, atomically.

    Deflating H&E takes longer than reading it from the slide and saves a third of the room.
    """
    height, width = pixels.shape[:2]
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 0  # each row begins with the number of its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    with atomic(path) as temporary, temporary.open("wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", head), (b"IDAT", _stored(rows.data.cast("B"))), (b"IEND", b"")):
            check = imagecodecs.deflate_crc32(data, imagecodecs.deflate_crc32(kind))
            stream.writelines((struct.pack(">I", len(data)), kind, data, struct.pack(">I", check)))


def _stored(data: memoryview) -> bytes:
    """A zlib stream (RFC 1950) that holds `data` as it is: what libdeflate gives at level 0, which copies it twice."""
    blocks = [data[start : start + STORED_BYTES] for start in range(0, len(data), STORED_BYTES)]
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for number, block in enumerate(blocks, 1):
        parts += [struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ STORED_BYTES), block]
    check = imagecodecs.deflate_adler32(data)  # type: ignore[arg-type] # takes any buffer
    return b"".join([*parts, struct.pack(">I", check)])


@lru_cache(maxsize=2)
def _slide(path: Path, backend: str, asap_path: Path | None) -> Slide:
    return open_slide(path, backend, asap_path)


@lru_cache(maxsize=2)
def _annotation(source: AnnotationSource, slide: Path, size: tuple[int, int]) -> Annotation:
    return source.read(slide, size)
