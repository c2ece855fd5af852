"""The methods that are compared, in the order of the table, and their figures patch by patch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from epsam.config.schema import Config
from epsam.evaluation import metrics
from epsam.patches.patch import location_of
from epsam.rounds import used_round
from epsam.runtime.files import write_csv
from epsam.runtime.records import Row, read_rows
from epsam.workspace import Workspace


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    """ones, colour, cam, sam, round0 ... roundN, student, supervised or student_supervised, as in the log and in
    metrics.csv."""
    decoder: Path | None = None
    """Decoder that takes the place of SAM's own."""
    student: Path | None = None
    """Student that predicts alone: no classifier excludes patches before."""

    @property
    def title(self) -> str:
        """Name for people."""
        if self.name.startswith("round"):
            return f"Round {self.name.removeprefix('round')}"
        return {
            "ones": "Whole patches",
            "colour": "Colour threshold",
            "cam": "CAM mask",
            "sam": "SAM, untuned",
            "student": "Student",
            "supervised": "SAM on true masks",
            "student_supervised": "Student on true masks",
        }[self.name]

    @property
    def note(self) -> str:
        """What it is, in one sentence."""
        if self.name == "round0":
            return "SAM's decoder trained on the CAM masks"
        if self.name.startswith("round"):
            return f"SAM's decoder trained on what round {int(self.name.removeprefix('round')) - 1} predicted"
        return {
            "ones": "every pixel called tumour: what any method has to beat",
            "colour": "one blurred colour above or below a value, chosen by the labels of the val patches alone",
            "cam": "the class activation map above its threshold, no SAM",
            "sam": "SAM's own decoder, never tuned, with the same prompts, views, map and postprocessing as the rounds",
            "student": "a U-Net on the classifier's trunk, trained on what the last round predicted; no SAM",
            "student_supervised": "the student's network trained on true masks: the upper bound",
            "supervised": "SAM's decoder trained on true masks: what the labels alone cannot know",
        }[self.name]


def methods_of(config: Config, workspace: Workspace) -> list[Method]:
    """All methods of a run, in the order of the table."""
    rounds = [Method(f"round{n}", workspace.decoder(n)) for n in range(config.retrain.rounds + 1)]
    student = [Method("student", student=workspace.student)] if config.student.enabled else []
    supervised = [Method("supervised", workspace.decoder("supervised"))] if config.evaluate.supervised else []
    if student and supervised:
        supervised.append(Method("student_supervised", student=workspace.supervised_student))
    return [*(Method(name) for name in ("ones", "colour", "cam", "sam")), *rounds, *student, *supervised]


def predicts_with_student(config: Config) -> bool:
    """Whether ./infer.sh predicts with the student, not with classifier and SAM."""
    return config.student.enabled and config.inference.model == "student"


def final_method(config: Config, workspace: Workspace) -> str:
    """Name of the method that ./infer.sh predicts with: the student, or the round that is used.

    Raises DataError when no round is recorded as used.
    """
    return "student" if predicts_with_student(config) else f"round{used_round(workspace)}"


def upper_bound(config: Config) -> str:
    """Name of the method with the network of `final_method`, trained on true masks."""
    return "student_supervised" if predicts_with_student(config) else "supervised"


def predictions(workspace: Workspace, method: str) -> Path:
    """Folder of the masks that a method predicts for test patches, <patch name>.png."""
    return workspace.state / "predictions" / method


def figures_csv(workspace: Workspace, method: str) -> Path:
    """Figures of a method patch by patch; written when all its masks are there."""
    return workspace.state / "predictions" / f"{method}.csv"


Count = Annotated[int, Field(ge=0, le=2**40)]
"""Pixels of a patch."""
COLUMNS = ["name", "label", "probability", "area", "both", "predicted", "true", "dice", "iou"]


@dataclass(frozen=True)
class Figures:
    """Overlap of one method with the truth on N test patches."""

    names: list[str]
    labels: np.ndarray
    """(N,) int, 1 where the patch holds tumour."""
    probabilities: np.ndarray
    """(N,) float in [0, 1] by the classifier; 1 for a student, which takes none."""
    areas: np.ndarray
    """(N,) px of each patch."""
    overlaps: np.ndarray
    """(N, 3) px: in both masks, in the predicted, in the true one."""

    @property
    def slides(self) -> list[str] | None:
        """The slide of each patch; None where a name does not give it, or there is only one."""
        locations = [location_of(name) for name in self.names]
        slides = [location.slide for location in locations if location]
        return slides if len(slides) == len(self.names) and len(set(slides)) > 1 else None

    @property
    def dice(self) -> np.ndarray:
        """(N,) per patch, in [0, 1]."""
        return metrics.pooled_dice(self.overlaps)

    @property
    def iou(self) -> np.ndarray:
        """(N,) per patch, in [0, 1]."""
        return metrics.pooled_iou(self.overlaps)

    def positives(self) -> "Figures":
        """The patches that hold tumour."""
        return self._rows(self.labels == 1)

    def normals(self) -> "Figures":
        """The patches that hold no tumour."""
        return self._rows(self.labels == 0)

    def gated(self, threshold: float) -> "Figures":
        """All patches, with an empty prediction where the classifier stays below `threshold`."""
        open_ = (self.probabilities >= threshold)[:, None]
        gated = self.overlaps * np.hstack([open_, open_, np.ones_like(open_)])
        return replace(self, overlaps=gated)

    def _rows(self, chosen: np.ndarray) -> "Figures":
        names = [name for name, keep in zip(self.names, chosen, strict=True) if keep]
        return Figures(
            names, self.labels[chosen], self.probabilities[chosen], self.areas[chosen], self.overlaps[chosen]
        )


def write_figures(path: Path, figures: Figures) -> None:
    """Write figures as CSV."""
    columns = (
        figures.names,
        figures.labels,
        figures.probabilities,
        figures.areas,
        *figures.overlaps.T,
        figures.dice,
        figures.iou,
    )
    write_csv(path, (dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)), COLUMNS)


class FigureRow(Row):
    """A row of the figures of a method, see `Figures`."""

    name: str
    label: Annotated[int, Field(ge=0, le=1)]
    probability: Annotated[float, Field(ge=0, le=1)]
    area: Count
    both: Count
    predicted: Count
    true: Count

    @model_validator(mode="after")
    def _check_overlap(self) -> "FigureRow":
        if self.both > min(self.predicted, self.true):
            raise ValueError(f"{self.both} px in both masks, {self.predicted} and {self.true} px in each")
        if max(self.predicted, self.true) > self.area:
            raise ValueError(f"masks of {self.predicted} and {self.true} px in a patch of {self.area} px")
        return self


def read_figures(path: Path) -> Figures:
    """Read what `write_figures` wrote; raises DataError when the file is missing or damaged."""
    rows = read_rows(path, FigureRow, "run ./train.sh again with --from evaluate")
    return Figures(
        [row.name for row in rows],
        np.array([row.label for row in rows], np.int64),
        np.array([row.probability for row in rows], np.float64),
        np.array([row.area for row in rows], np.int64),
        np.array([[row.both, row.predicted, row.true] for row in rows], np.int64).reshape(-1, 3),
    )
