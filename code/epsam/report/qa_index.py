"""The page over all QA sheets: failed slides first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from epsam.patches.manifest import SlideRecord
from epsam.runtime.files import write_text
from epsam.visualization.page import render
from epsam.visualization.slide_sheet import slide_sheet_path
from epsam.workspace import Workspace

LEGEND = (
    ("tissue", "outline of the tissue", True),
    ("truth", "annotation", True),
    ("excluded", "excluded from it", True),
    ("tumour-patch", "patch with tumour", False),
    ("classifier-patch", "patch with tumour, for the classifier only", False),
    ("normal-patch", "normal patch", False),
)
ORDER = ("failed", "excluded", "ok")
"""Of slides on the page, by their status."""


def write_index(records: Sequence[SlideRecord], workspace: Workspace) -> None:
    """Write runs/<name>/qa/index.html with every slide, used or not."""
    ordered = sorted(records, key=lambda r: (ORDER.index(r.status) if r.status in ORDER else 0, r.split, r.slide))
    sheets = {record.slide: slide_sheet_path(workspace.qa, record.slide) for record in records}
    slides = [
        asdict(record) | {"picture": sheets[record.slide].name if sheets[record.slide].is_file() else ""}
        for record in ordered
    ]
    counts = Counter(record.status for record in records)
    names = {"ok": "used", "failed": "failed", "excluded": "excluded"}
    tally = ", ".join(f"{counts[status]} {name}" for status, name in names.items() if counts[status])
    page = render(
        Path(__file__).parent / "qa.html",
        name=workspace.name,
        tally=f"{len(records)} slides ({tally or 'none'}).",
        legend=LEGEND,
        failed=[slide for slide in slides if slide["status"] == "failed"],
        slides=slides,
    )
    write_text(workspace.qa / "index.html", page)
