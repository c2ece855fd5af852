"""The report's table of whole test slides."""

from typing import Any

from epsam.config.schema import Config
from epsam.evaluation.methods import Method, final_method
from epsam.evaluation.slides import SlideFigures, read_slide_figures
from epsam.evaluation.table import interval_of
from epsam.results import read_results
from epsam.workspace import Workspace

COLUMNS = ("Slide", "Dice", "Precision", "Recall", "Marked in error")


def whole_slides_section(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Everything of "Whole slides"; no rows where they were not predicted."""
    figures, final = read_slide_figures(workspace), final_method(config, workspace)
    row = next((row for row in read_results(workspace) if row.get("method") == f"{final}_slides"), None)
    if not figures or row is None:
        return {"rows": []}
    pooled = ", ".join(
        f"{title} {float(row[key]):.3f} ({low:.3f} to {high:.3f})"
        for title, key in (("Dice", "all_pooled_dice"), ("precision", "all_precision"), ("recall", "all_recall"))
        for low, high in [interval_of(row, key)]
    )
    return {
        "columns": COLUMNS,
        "rows": [_row(one) for one in figures],
        "page": workspace.test_slides.relative_to(workspace.run).as_posix() + "/index.html",
        "explanation": (
            f"Each test slide predicted whole, as ./infer.sh predicts it ({Method(final).title.lower()}), against its "
            f"annotation. Pixels of all slides together: {pooled}; in brackets 95% bootstrap intervals over slides."
        ),
    }


def _row(one: SlideFigures) -> tuple[str, ...]:
    shares = ("–" if value is None else f"{value:.3f}" for value in (one.dice, one.precision, one.recall))
    area = "–" if one.false_mm2 is None else f"{one.false_mm2:.3f} mm²"
    return (one.slide, *shares, area)
