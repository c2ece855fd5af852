"""What the figures of a run say about its use: paired differences, and warnings where the result is of no use."""

from collections.abc import Mapping
from dataclasses import dataclass

from epsam.config.schema import Config
from epsam.evaluation import metrics
from epsam.evaluation.methods import Figures, Method, figures_csv, final_method, read_figures
from epsam.results import Value, read_results
from epsam.workspace import Workspace

MIN_AUC = 0.8
MAX_NORMAL_MARKED = 0.05


@dataclass(frozen=True)
class Finding:
    """Why a result is of no use, and what to look at."""

    what: str
    advice: str


def paired_difference(config: Config, one: Figures, other: Figures) -> tuple[float, float, float]:
    """Mean Dice of `one` minus that of `other` on the same patches with tumour, low, high.

    95% bootstrap interval over patches or, where it is wider, over slides.
    """
    one, other = one.positives(), other.positives()
    found = [
        metrics.mean_with_interval(
            one.dice - other.dice, config.evaluate.bootstrap, metrics.BOOTSTRAP_SEED, groups=groups
        )
        for groups in ([None, one.slides] if one.slides else [None])
    ]
    return max(found, key=lambda interval: interval[2] - interval[1])


def run_warnings(config: Config, workspace: Workspace) -> list[Finding]:
    """Warnings about the final method of a run that is evaluated; none where nothing was measured."""
    results = read_results(workspace)
    measured = {row["method"]: row for row in results if row["stage"] == "evaluate"}
    final = final_method(config, workspace)
    if final not in measured:
        return []
    figures = {name: read_figures(figures_csv(workspace, name)) for name in ("ones", "cam", final) if name in measured}
    auc = next(
        (
            row["auc"]
            for row in results
            if row["stage"] == "train-classifier" and row.get("split") == "test" and "auc" in row
        ),
        None,
    )
    return find_warnings(config, final, figures, measured[final], None if auc is None else float(auc))


def find_warnings(
    config: Config, final: str, figures: Mapping[str, Figures], row: Mapping[str, Value], auc: float | None
) -> list[Finding]:
    """Warnings about the final method: `figures` of all methods by name, its `row` of the table, the classifier's AUC
    on the test split."""
    found = []
    for name, advice in (
        ("ones", "calling every patch of a positive label tumour does as well, so nothing was localised"),
        ("cam", "what follows the class activation map adds nothing to it"),
    ):
        if name not in figures or name == final:
            continue
        value, low, high = paired_difference(config, figures[final], figures[name])
        if low <= 0:
            found.append(
                Finding(
                    f"{Method(final).title} is not clearly better than {Method(name).title}: Dice {value:+.3f} "
                    f"[{low:+.3f}, {high:+.3f}]",
                    f"{advice}; look at the maps (cams/sheet.png) and the pseudo-labels (labels_round*.png)",
                )
            )
    if auc is not None and auc < MIN_AUC:
        found.append(
            Finding(
                f"the classifier's AUC on test patches is {auc:.3f}, below {MIN_AUC}",
                "maps of a classifier that cannot tell the patches apart show no tumour; look at labels, stains and "
                "classifier_curves.png, and try pretrained weights (classifier.init)",
            )
        )
    marked = float(row.get("normal_marked", 0))
    if marked > MAX_NORMAL_MARKED:
        found.append(
            Finding(
                f"{Method(final).title} marks {marked:.1%} of the area of normal patches as tumour",
                "expect false positives on whole slides; give the classifier more normal patches, and tissue like "
                "that which is marked",
            )
        )
    return found
