"""Which slides, annotations and labels belong together, and which slides can be used: before any slide is opened."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from epsam.config.schema import Slides
from epsam.errors import DataError, SlideError
from epsam.patches.camelyon import KNOWN_ISSUES, canonical_name, kind_of, patient_of
from epsam.patches.csv_input import nearest
from epsam.patches.labels import WindowLabels, read_labels
from epsam.patches.patients import patient_by_pattern
from epsam.patches.slide_table import SlideInfo, read_slide_table
from epsam.patches.sources import Sources, find_sources, slide_of
from epsam.runtime.failures import check_name, printable
from epsam.runtime.log import logger
from epsam.runtime.text import listed
from epsam.slides.formats import match_key, slide_name
from epsam.workspace import Workspace


@dataclass
class SlideRecord:
    """A slide and what became of it: one row of runs/<name>/slides.csv."""

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
    patch_mpp: float | None = None
    """um per pixel of its patches."""
    patches_positive: int = 0
    patches_negative: int = 0
    annotation: Path | None = field(default=None, metadata={"internal": True})
    info: SlideInfo = field(default=SlideInfo(), metadata={"internal": True})
    """Its line of slides.csv."""
    labels: WindowLabels | None = field(default=None, metadata={"internal": True})
    """Its windows of labels.csv, which become its patches."""
    all_tumour: bool = field(default=False, metadata={"internal": True})
    """True: all its windows count as tumour (slides.unlabelled_tumour: positive)."""
    negatives: bool = field(default=True, metadata={"internal": True})
    """False: windows outside the outlines may hold tumour."""
    patient_by_name: str = field(default="", metadata={"internal": True})
    """By slides.patient_pattern."""

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
        """Whose slide it is, in composed Unicode (NFC) and with single blanks.

        A slide of which this is not known is a patient of its own.
        """
        given = self.info.patient or (self.labels.patient if self.labels else None)
        name = given or self.patient_by_name or patient_of(self.name)
        return " ".join(unicodedata.normalize("NFC", name).split())

    @property
    def patient_key(self) -> str:
        """By what patients are compared: `p-07` and `P-07` are one, as a patient in two splits would make figures flatter."""
        return match_key(self.patient)

    @property
    def given_split(self) -> str:
        """The split that slides.csv or labels.csv asks for, or nothing."""
        return self.info.split or (self.labels.split if self.labels else None) or ""

    def drop(self, status: str, reason: str) -> None:
        """Take the slide out of the run, once, with its reason."""
        if self.status == "ok":
            self.status, self.reason = status, reason

    def row(self) -> dict[str, object]:
        """Its row of slides.csv."""
        values = {column: getattr(self, column) for column in SLIDE_COLUMNS}
        return {column: "" if value is None else value for column, value in values.items()}


SLIDE_COLUMNS = [name for name, about in SlideRecord.__dataclass_fields__.items() if not about.metadata.get("internal")]


def usable(records: Iterable[SlideRecord]) -> list[SlideRecord]:
    """Slides that patches are cut from."""
    return [record for record in records if record.status == "ok"]


@dataclass(frozen=True)
class Manifest:
    """The slides of a data set, and what is odd about it."""

    records: list[SlideRecord]
    """By name; some already dropped with a reason. Annotations without a slide are among them, failed."""
    warnings: list[str]


def find_slides(workspace: Workspace, settings: Slides) -> list[SlideRecord]:
    """The records of `read_manifest`, with its warnings in the log; raises DataError when there is no slide at all."""
    manifest = read_manifest(workspace, settings)
    if not any(record.is_slide for record in manifest.records):
        raise DataError(
            f"{workspace.slides}: no slides; put them there (or a link to them), and their annotations into "
            f"{workspace.annotations}"
        )
    for warning in manifest.warnings:
        logger.warning(warning)
    return manifest.records


def read_manifest(workspace: Workspace, settings: Slides) -> Manifest:
    """Pair slides with annotations and with the lines of slides.csv and labels.csv.

    Raises DataError or ConfigError when one of these tables makes no sense.
    """
    sources = find_sources(workspace)
    table, labels = read_slide_table(workspace.slide_table), read_labels(workspace.labels_csv)
    annotations, lonely = _pair(sources)
    records = []
    names = Counter(match_key(slide_name(path)) for path in sources.slides)
    for path in sources.slides:
        key = match_key(slide_name(path))
        record = SlideRecord(
            slide_name(path), path, info=table.get(key, SlideInfo()), labels=labels.get(key), annotation=None
        )
        record.patient_by_name = patient_by_pattern(record.slide, settings.patient_pattern)
        _check_file(record, names[key], sources.slides)
        _attach(record, annotations[key])
        _exclude_unusable(record, workspace, settings)
        records.append(record)
    slides = [record.slide for record in records]
    for path in lonely:
        hint = nearest(path.name.partition(".")[0], slides) or "; slides and annotations go together by their names"
        reason = f"annotation without a slide: no slide of this name in {workspace.slides.name}/{hint}"
        records.append(SlideRecord(printable(path.name), path, annotation=path, status="failed", reason=reason))
    return Manifest(records, _warnings(workspace, sources, records, table, labels))


def _pair(sources: Sources) -> tuple[dict[str, list[Path]], list[Path]]:
    """Annotations by key of their slide, and those that have none."""
    names = {match_key(slide_name(path)) for path in sources.slides}
    paired: dict[str, list[Path]] = defaultdict(list)
    for path in sources.annotations:
        paired[slide_of(path, names)].append(path)
    lonely = paired.pop("", [])
    return paired, lonely


def _check_file(record: SlideRecord, of_its_name: int, slides: Sequence[Path]) -> None:
    try:
        check_name(record.path)
    except SlideError as error:
        record.drop("failed", str(error))
    if of_its_name > 1:
        key = match_key(record.slide)
        where = listed(printable(str(path)) for path in slides if match_key(slide_name(path)) == key)
        record.drop(
            "failed", f"{of_its_name} slides are named {record.slide}; keep one of them, or rename one: {where}"
        )


def _attach(record: SlideRecord, annotations: Sequence[Path]) -> None:
    if len(annotations) > 1:
        names = listed(str(path) for path in annotations)
        record.drop("failed", f"{len(annotations)} annotations for one slide: {names}; keep one of them")
    record.annotation = annotations[0] if annotations else None


def _exclude_unusable(record: SlideRecord, workspace: Workspace, settings: Slides) -> None:
    """Drop what cannot or must not be used, as far as names and tables say."""
    if record.info.exclude:
        record.drop("excluded", f"excluded by {workspace.slide_table}: {record.info.exclude}")
    issue = KNOWN_ISSUES.get(settings.collection, {}).get(record.name)
    if issue and issue.exclude:
        record.drop("excluded", f"known issue of {settings.collection}: {issue.reason}")
    elif issue:
        record.negatives = False
        record.reason = record.reason or f"no negatives taken: {issue.reason}"
    if record.labels and record.labels.problem:
        record.drop("failed", record.labels.problem)
    if record.labels and record.labels.split and record.info.split not in (None, record.labels.split):
        record.drop(
            "failed", f"{workspace.slide_table} puts it into {record.info.split}, labels.csv into {record.labels.split}"
        )
    if record.info.label == "normal":
        _check_normal(record, workspace)
    elif record.annotation is None and record.labels is None:
        _check_unannotated(record, workspace, settings)


def _check_normal(record: SlideRecord, workspace: Workspace) -> None:
    if record.annotation:
        record.drop("failed", f"{workspace.slide_table} says that it is normal, but there is {record.annotation}")
    if record.labels and record.labels.label.any():
        record.drop("failed", f"{workspace.slide_table} says that it is normal, but labels.csv has tumour on it")


def _check_unannotated(record: SlideRecord, workspace: Workspace, settings: Slides) -> None:
    """A slide of which nobody says where its tumour is: normal tissue only where something says so."""
    kind = kind_of(record.slide)
    if record.info.label == "tumour":
        if settings.unlabelled_tumour == "positive":
            record.all_tumour = True
        else:
            record.drop("excluded", TUMOUR_WITHOUT_PLACE.format(table=workspace.slide_table))
    elif kind == "tumour":
        record.drop(
            "failed", f"a tumour slide by its name, but its annotation is missing in {workspace.annotations.name}/"
        )
    elif not (settings.unannotated == "normal" or (kind == "normal" and settings.collection != "own")):
        record.drop("excluded", UNANNOTATED.format(table=workspace.slide_table))


UNANNOTATED = (
    "neither annotated nor labelled; if it is normal tissue, give it the label normal in {table} "
    "(epsam slides-csv writes a template), or set slides.unannotated=normal for all such slides"
)
TUMOUR_WITHOUT_PLACE = (
    "a tumour slide by {table}, but nothing says where its tumour is; annotate it, label windows in labels.csv, or "
    "set slides.unlabelled_tumour=positive to take all its tissue for tumour"
)


def _warnings(
    workspace: Workspace,
    sources: Sources,
    records: Sequence[SlideRecord],
    table: dict[str, SlideInfo],
    labels: dict[str, WindowLabels],
) -> list[str]:
    warnings = []
    slides = {match_key(record.slide): record.slide for record in records if record.is_slide}
    if sources.others:
        names = listed(printable(str(path.relative_to(workspace.dataset))) for path in sources.others)
        warnings.append(
            f"{len(sources.others)} files are neither slides nor annotations by their names (broken downloads?) and are "
            f"not used: {names}"
        )
    for path, keys in ((workspace.slide_table, table), (workspace.labels_csv, labels)):
        if unknown := [key for key in keys if key not in slides]:
            shown = listed(f"{printable(key)}{nearest(key, slides.values())}" for key in unknown)
            warnings.append(f"{path}: no such slides: {shown}")
    for record in records:
        if record.labels and record.labels.duplicates:
            warnings.append(f"{workspace.labels_csv}: {record.slide}: {record.labels.duplicates} windows come twice")
    for reason, status in ((UNANNOTATED, "excluded"), (TUMOUR_WITHOUT_PLACE, "excluded")):
        text = reason.format(table=workspace.slide_table)
        if found := [record.slide for record in records if (record.status, record.reason) == (status, text)]:
            warnings.append(f"{len(found)} of {len(slides)} slides are left out: {text}: {listed(found)}")
    return warnings
