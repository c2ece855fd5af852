"""What lies in images/ and annotations/, and which of it can be used: before any slide is opened."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from epsam.config.schema import Slides
from epsam.errors import ConfigError, DataError, SlideError
from epsam.patches.camelyon import KNOWN_ISSUES, canonical_name, kind_of, patient_of
from epsam.runtime.failures import check_name
from epsam.runtime.files import read_csv
from epsam.runtime.log import logger
from epsam.runtime.text import listed
from epsam.workspace import SPLITS, Workspace

SUFFIXES = {".tif", ".tiff", ".svs", ".svslide", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".czi", ".dcm"}
"""File names of slides, in small letters; other files in images/ are left alone."""


OVERRIDES = ("slide", "split", "patient", "mpp", "tissue_threshold", "exclude")


@dataclass(frozen=True)
class Override:
    """One line of the overrides table; None where the cell is empty."""

    split: str | None = None
    patient: str | None = None
    mpp: float | None = None
    """um per level-0 pixel, in place of what the file says."""
    tissue_threshold: int | None = None
    """Saturation 0..255 above which a pixel is tissue, in place of Otsu's."""
    exclude: str | None = None
    """Why the slide is not to be used."""


@dataclass
class SlideRecord:
    """A slide and what became of it: one row of slides.csv."""

    slide: str
    path: Path
    split: str = ""
    status: str = "ok"
    """`ok`, `failed` (should be usable, is not) or `excluded` (on purpose)."""
    reason: str = ""
    reader: str = ""
    reader_version: str = ""
    vendor: str = ""
    width: int = 0
    height: int = 0
    mpp_x: float | None = None
    mpp_y: float | None = None
    patches_positive: int = 0
    patches_negative: int = 0
    annotation: Path | None = field(default=None, metadata={"internal": True})
    override: Override = field(default=Override(), metadata={"internal": True})
    negatives: bool = field(default=True, metadata={"internal": True})
    """False: windows outside the outlines may hold tumour."""

    @property
    def name(self) -> str:
        """The collection's own spelling of the slide's name."""
        return canonical_name(self.slide)

    @property
    def is_slide(self) -> bool:
        """False for an annotation that has no slide."""
        return self.path != self.annotation

    @property
    def patient(self) -> str:
        return self.override.patient or patient_of(self.name)

    def drop(self, status: str, reason: str) -> None:
        """Take the slide out of the run, once, with its reason."""
        if self.status == "ok":
            self.status, self.reason = status, reason

    def row(self) -> dict[str, object]:
        """Its row of slides.csv."""
        values = asdict(self)
        return {column: "" if values[column] is None else values[column] for column in SLIDE_COLUMNS}


SLIDE_COLUMNS = [name for name, about in SlideRecord.__dataclass_fields__.items() if not about.metadata.get("internal")]


def usable(records: Iterable[SlideRecord]) -> list[SlideRecord]:
    """Slides that patches are cut from."""
    return [record for record in records if record.status == "ok"]


def find_slides(workspace: Workspace, settings: Slides) -> list[SlideRecord]:
    """All slides of the data set by name, paired with their annotations, some already dropped with a reason.

    An annotation without a slide is listed too. Raises DataError when there is no slide at all.
    """
    folder = workspace.slides
    files = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    slides = [p for p in files if p.suffix.lower() in SUFFIXES and not p.is_dir()]
    if not slides:
        raise DataError(
            f"{folder}: no slides; put them there (or a link to them), and their XML into {workspace.annotations}"
        )
    left = [p.name for p in files if p not in slides and p.suffix.lower() != ".xml" and p.is_file()]
    if left:
        logger.warning(f"{folder}: {len(left)} files are no slides by their names and are left alone: {listed(left)}")
    annotations = _find_annotations(workspace)
    overrides = read_overrides(settings.overrides) if settings.overrides else {}
    names = Counter(p.stem.casefold() for p in slides)
    records = []
    for path in slides:
        key = path.stem.casefold()
        record = SlideRecord(path.stem, path, annotation=annotations.get(key), override=overrides.get(key, Override()))
        try:
            check_name(path)
        except SlideError as error:
            record.drop("failed", str(error))
        if names[key] > 1:
            record.drop("failed", f"{names[key]} slides are named {path.stem}; keep one of them")
        _exclude_unusable(record, settings)
        records.append(record)
    for key, xml in annotations.items():
        if key not in names:
            records.append(
                SlideRecord(
                    xml.stem,
                    xml,
                    annotation=xml,
                    status="failed",
                    reason=f"annotation without a slide: no {xml.stem}.* in {folder.name}/",
                )
            )
    if unknown := sorted(set(overrides) - set(names)):
        logger.warning(f"{settings.overrides}: no such slides: {listed(unknown)}")
    return records


def _find_annotations(workspace: Workspace) -> dict[str, Path]:
    folder = workspace.annotations
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {p.stem.casefold(): p for p in files if p.suffix.lower() == ".xml" and not p.name.startswith(".")}


def _exclude_unusable(record: SlideRecord, settings: Slides) -> None:
    """Drop what cannot or must not be used, as far as names tell."""
    if record.override.exclude:
        record.drop("excluded", f"excluded by {settings.overrides}: {record.override.exclude}")
    trouble = KNOWN_ISSUES.get(settings.collection, {}).get(record.name)
    if trouble and trouble.exclude:
        record.drop("excluded", f"known trouble of {settings.collection}: {trouble.reason}")
    elif trouble:
        record.negatives = False
        record.reason = record.reason or f"no negatives taken: {trouble.reason}"
    if record.annotation is None:
        kind = kind_of(record.slide)
        if kind == "tumour":
            record.drop("failed", f"a tumour slide by its name, but annotations/{record.slide}.xml is missing")
        elif kind != "normal" and settings.collection != "own":
            record.drop("failed", f"no annotations/{record.slide}.xml, and the name does not say that it is normal")
        elif kind != "normal":
            record.reason = record.reason or "no annotation: taken as a normal slide"


def read_overrides(path: Path) -> dict[str, Override]:
    """The overrides table by slide name (case-folded); columns `slide` and any of OVERRIDES.

    Raises DataError for a missing table or a doubled slide, ConfigError for an unknown column or wrong value.
    """
    rows = read_csv(path, ["slide"])
    unknown = sorted({str(column) for row in rows for column in row} - set(OVERRIDES))
    if unknown:
        raise ConfigError(f"{path}: unknown column {', '.join(unknown)}; known are {', '.join(OVERRIDES)}")
    table: dict[str, Override] = {}
    for number, row in enumerate(rows, 2):
        cells = {key: value.strip() for key, value in row.items() if value and value.strip()}
        slide = cells.pop("slide", "").casefold()
        if not slide or slide in table:
            raise DataError(f"{path}, line {number}: " + (f"{slide} comes twice" if slide else "no slide name"))
        table[slide] = _override(f"{path}, line {number}", cells)
    return table


def _override(where: str, cells: dict[str, str]) -> Override:
    if cells.get("split", SPLITS[0]) not in SPLITS:
        raise ConfigError(f"{where}: split {cells['split']} is none of {', '.join(SPLITS)}")
    try:
        mpp = float(cells["mpp"]) if "mpp" in cells else None
        threshold = int(cells["tissue_threshold"]) if "tissue_threshold" in cells else None
    except ValueError as error:
        raise ConfigError(f"{where}: not a number ({error})") from None
    if mpp is not None and not 0.01 <= mpp <= 100:
        raise ConfigError(f"{where}: mpp {mpp} is not a resolution in um per pixel")
    if threshold is not None and not 0 <= threshold <= 255:
        raise ConfigError(f"{where}: tissue_threshold {threshold} is not in 0..255")
    return Override(cells.get("split"), cells.get("patient"), mpp, threshold, cells.get("exclude"))
