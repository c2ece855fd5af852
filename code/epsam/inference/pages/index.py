"""index.html over all predictions of a folder: slides with their foci, or patches; what failed comes first."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from epsam.errors import DataError
from epsam.inference.pages.records import FocusRecord, PageRecord, area_text, side_text, size_class
from epsam.inference.pages.slide_page import FOLDER, files_of, script
from epsam.runtime.failures import printable
from epsam.runtime.files import write_text
from epsam.runtime.log import logger
from epsam.runtime.records import read_record
from epsam.slides.slide import plausible_mpp
from epsam.visualization.page import render

MAX_FOCI = 500
"""Of the table of foci, the longest."""
MAX_PICTURES = 200
"""Of patches, those with most tumour."""
UNKNOWN_MM = 1e-9
"""mm per px where the resolution is not known: such slides and foci are sorted among themselves, below all others."""
STATUS_ORDER = ("failed", "excluded")
PATCH_COLUMNS = (
    ("Tumour", "tumour_fraction"),
    ("Classifier", "classifier_probability"),
    ("Dice", "dice"),
    ("IoU", "iou"),
)

Row = Mapping[str, Any]


def write_slide_index(output: Path, rows: Iterable[Row], *, lymph_nodes: bool) -> None:
    """Write index.html over slides from their rows of slides.csv, as typed values or text, and from pages/*.json.

    `lymph_nodes`: give foci the classes of size of metastases in lymph nodes.
    """
    rows = list(rows)
    slides = [_Slide(output, row) for row in rows if row["status"] == "ok"]
    foci = [(slide, number, focus) for slide in slides for number, focus in enumerate(slide.record.foci, 1)]
    foci.sort(key=lambda item: -item[2].longest_px * item[0].mm_per_px)
    _write(
        output,
        "slides.html",
        rows,
        "slide",
        slides=[slide.shown() for slide in slides],
        warned=[{"name": slide.name, "warnings": slide.record.warnings} for slide in slides if slide.record.warnings],
        foci=[slide.focus(number, focus) for slide, number, focus in foci[:MAX_FOCI]],
        more=max(0, len(foci) - MAX_FOCI),
        lymph_nodes=lymph_nodes,
    )


def write_patch_index(output: Path, rows: Sequence[Row]) -> None:
    """Write index.html over patches from their rows of predictions.csv."""
    patches = [_patch(row) for row in rows if row["status"] == "ok"]
    pictures = sorted(enumerate(patches, 1), key=lambda item: -item[1]["tumour_fraction"])[:MAX_PICTURES]
    _write(
        output,
        "patches.html",
        rows,
        "patch",
        patches=patches,
        columns=PATCH_COLUMNS,
        pictures=sorted(pictures, key=lambda item: item[0]),
        more=len(patches) - len(pictures),
    )


def _write(output: Path, template: str, rows: Sequence[Row], key: str, **values: Any) -> None:
    counts: Counter[str] = Counter(row["status"] for row in rows)
    names = {"ok": "predicted", "failed": "failed", "excluded": "excluded"}
    tally = ", ".join(f"{counts[status]} {name}" for status, name in names.items() if counts[status])
    failed = [
        {"name": printable(row[key]), "status": row["status"], "reason": _reason(row)}
        for row in sorted(
            rows, key=lambda row: STATUS_ORDER.index(row["status"]) if row["status"] in STATUS_ORDER else 0
        )
        if row["status"] != "ok"
    ]
    page = render(
        FOLDER / template,
        title=printable(output.resolve().name),
        tally=f"{len(rows)} {key if len(rows) == 1 else {'patch': 'patches', 'slide': 'slides'}[key]}: {tally}.",
        failed=failed,
        sort=script("sort.js"),
        **values,
    )
    write_text(output / "index.html", page)


def _reason(row: Row) -> str:
    """Why a slide or patch failed, without the folders of this machine: pages are given to others."""
    folder = Path(row.get("path") or "").parent
    return printable(str(row["reason"]).replace(f"{folder}/", "") if row.get("path") else row["reason"])


class _Slide:
    """A predicted slide as its page and its row say it."""

    def __init__(self, output: Path, row: Row):
        self.name = row["slide"]
        self._row = row
        self._mpp = plausible_mpp(_number(row["mpp_x"]), _number(row["mpp_y"]))
        self.mm_per_px = sum(self._mpp) / 2e3 if self._mpp else UNKNOWN_MM
        self.has_page = (output / "pages" / f"{self.name}.html").is_file()
        self.record = _read_record(output / "pages" / f"{self.name}.json")

    def shown(self) -> dict[str, Any]:
        """The slide as the template shows it."""
        side = _number(self._row["largest_focus_px"]) or 0.0
        return {
            "name": self.name,
            "page": f"pages/{quote(self.name)}.html" if self.has_page else "",
            "thumbnail": f"pages/{quote(self.name)}_thumbnail.jpg",
            "share": _number(self._row["tumour_fraction"]) or 0.0,
            "foci": int(_number(self._row["foci"]) or 0),
            "files": files_of(self.name),
            **self._sizes(_number(self._row["tumour_px2"]) or 0.0, side),
        }

    def focus(self, number: int, focus: FocusRecord) -> dict[str, Any]:
        """One of its foci as the template shows it."""
        return {
            "slide": self.name,
            "number": number,
            "href": f"pages/{quote(self.name)}.html#focus-{number}",
            "probability": focus.probability,
            "x": focus.x,
            "y": focus.y,
            **self._sizes(focus.area_px2, focus.longest_px),
        }

    def _sizes(self, area_px2: float, side_px: float) -> dict[str, Any]:
        return {
            "area_value": area_px2 * self.mm_per_px**2,
            "area": area_text(area_px2, self._mpp),
            "side_value": side_px * self.mm_per_px,
            "side": side_text(side_px, self._mpp) if side_px else "–",
            "class": size_class(side_px * self.mm_per_px) if side_px and self._mpp else "–",
        }


def _read_record(path: Path) -> PageRecord:
    """What was recorded of a slide; nothing, with a warning, where that is damaged or gone."""
    if path.is_file():
        try:
            return read_record(path, PageRecord, "delete it, and the slide is predicted again")
        except DataError as error:
            logger.warning(f"{error}; index.html leaves the slide's foci out")
    return PageRecord(warnings=[], foci=[])


def _patch(row: Row) -> dict[str, Any]:
    name = row["patch"]
    figures = {key: _number(row[key]) for _, key in PATCH_COLUMNS}
    file = quote(f"{name}.png")
    return {"name": name, "mask": f"mask/{file}", "overlay": f"overlay/{file}"} | figures


def _number(cell: Any) -> float | None:
    """A figure of a table, typed or as text; None for an empty cell."""
    return None if cell in (None, "") else float(cell)
