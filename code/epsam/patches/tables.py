"""Names of patches, and the tables patches.csv and slides.csv."""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt

from epsam.patches.candidates import SlideCandidates
from epsam.patches.manifest import SLIDE_COLUMNS, SlideRecord, usable
from epsam.patches.stale import remove_patches
from epsam.runtime.files import write_csv
from epsam.runtime.log import logger
from epsam.runtime.records import Row, read_rows
from epsam.runtime.text import listed
from epsam.workspace import SPLITS, Workspace

PATCH_COLUMNS = [
    "name",
    "slide",
    "x",
    "y",
    "read_px",
    "tumour_fraction",
    "split",
    "label",
    "chosen",
    "purpose",
    "reader",
    "reader_version",
    "vendor",
]


class SlideRow(Row):
    """A row of slides.csv, as it is read back."""

    slide: str
    path: str = ""
    status: Literal["ok", "failed", "excluded"]
    reason: str = ""
    split: str = ""
    reader: str = ""
    vendor: str = ""
    width: NonNegativeInt = 0
    height: NonNegativeInt = 0
    mpp_x: float | None = None
    mpp_y: float | None = None
    patch_mpp: float | None = None
    patches_positive: NonNegativeInt = 0
    patches_negative: NonNegativeInt = 0


def read_summary(workspace: Workspace) -> list[SlideRow]:
    """Rows of slides.csv, none where the patches were brought as they are; raises DataError when it is damaged."""
    path = workspace.slides_csv
    return read_rows(path, SlideRow, "run ./train.sh again with --from preprocess") if path.is_file() else []


def patch_names(record: SlideRecord, slide_candidates: SlideCandidates) -> list[str]:
    """`<slide>_x<X>_y<Y>_<label>` of each candidate window: level-0 corner; label 1 when it holds tumour."""
    return [
        f"{record.slide}_x{x}_y{y}_{label}"
        for x, y, label in zip(
            slide_candidates.x.tolist(), slide_candidates.y.tolist(), slide_candidates.label.tolist(), strict=True
        )
    ]


def write_patches(
    records: list[SlideRecord],
    candidates: Mapping[str, SlideCandidates],
    purposes: Mapping[str, np.ndarray],
    workspace: Workspace,
) -> None:
    """Write patches.csv: every candidate window of the slides in use."""
    write_csv(
        workspace.patches_csv,
        (row for record in usable(records) for row in _rows(record, candidates[record.slide], purposes[record.slide])),
        PATCH_COLUMNS,
    )


def _rows(record: SlideRecord, slide_candidates: SlideCandidates, purpose: np.ndarray) -> Iterator[dict[str, object]]:
    common = {
        "slide": record.slide,
        "read_px": slide_candidates.read_px,
        "split": record.split,
        "reader": slide_candidates.reader,
        "reader_version": slide_candidates.reader_version,
        "vendor": slide_candidates.vendor,
    }
    for i, name in enumerate(patch_names(record, slide_candidates)):
        yield common | {
            "name": name,
            "x": slide_candidates.x[i],
            "y": slide_candidates.y[i],
            "tumour_fraction": "" if np.isnan(slide_candidates.fraction[i]) else f"{slide_candidates.fraction[i]:.6g}",
            "label": slide_candidates.label[i],
            "chosen": int(purpose[i] != ""),
            "purpose": purpose[i],
        }


def write_summary(records: list[SlideRecord], workspace: Workspace) -> None:
    """Write slides.csv, and log what each split has and every slide that was not used, with its reason."""
    write_csv(workspace.slides_csv, (record.row() for record in records), SLIDE_COLUMNS)
    for split in SPLITS:
        slides = [record for record in usable(records) if record.split == split]
        logger.info(
            f"{split}: {len(slides)} slides, {sum(r.patches_positive for r in slides)} positive and "
            f"{sum(r.patches_negative for r in slides)} negative patches"
        )
    reasons: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.status != "ok":
            reasons.setdefault((record.status, record.reason), []).append(record.slide)
    for (status, reason), names in reasons.items():
        logger.info(f"{status}: {listed(names, 6)}: {reason}")
    if failed := [record.slide for record in records if record.status == "failed"]:
        logger.warning(
            f"{len(failed)} of {len(records)} slides failed, the others are done: see {workspace.slides_csv}"
        )


def remove_stale(
    records: list[SlideRecord],
    candidates: Mapping[str, SlideCandidates],
    purposes: Mapping[str, np.ndarray],
    workspace: Workspace,
) -> None:
    """Remove patches of these slides that earlier runs cut and that are not chosen now."""
    keep: set[tuple[str, str]] = set()
    for record in usable(records):
        names = np.array(patch_names(record, candidates[record.slide]))
        keep |= {(record.split, str(name)) for name in names[purposes[record.slide] != ""]}
    if removed := remove_patches(workspace, {record.slide for record in records}, keep):
        logger.info(f"removed {removed} patches of an earlier run that are not chosen now")
