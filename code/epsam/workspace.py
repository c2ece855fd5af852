"""Where all files of a run are, relative to the project's top level."""

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")
RESERVED_FOLDERS = ("image", "mask", "initial_mask", "distill")
"""Folders of a split that the program itself writes, beside iter_*."""


@dataclass(frozen=True)
class Workspace:
    """The files of the run `name` under `root`; nothing is made by asking."""

    root: Path
    name: str

    @property
    def dataset(self) -> Path:
        """Slides, annotations and patches."""
        return self.root / "dataset" / self.name

    @property
    def slides(self) -> Path:
        return self.dataset / "images"

    @property
    def annotations(self) -> Path:
        return self.dataset / "annotations"

    @property
    def patches_csv(self) -> Path:
        """Every candidate window."""
        return self.dataset / "patches.csv"

    @property
    def labels_csv(self) -> Path:
        """Windows that people labelled, where there are no outlines; see patches/labels.py."""
        return self.dataset / "labels.csv"

    @property
    def slide_table(self) -> Path:
        """What people say of single slides: patient, split, label, resolution...; see patches/slide_table.py."""
        return self.dataset / "slides.csv"

    @property
    def slides_csv(self) -> Path:
        """Every slide: how it was read, or why it failed."""
        return self.run / "slides.csv"

    def class_folders(self) -> list[Path]:
        """Folders of the splits that the program does not write: patches in a folder per class, by whatever name."""
        return [
            folder
            for split in SPLITS
            if self.split(split).is_dir()
            for folder in sorted(self.split(split).iterdir())
            if folder.is_dir() and folder.name not in RESERVED_FOLDERS and not folder.name.startswith((".", "iter_"))
        ]

    def split(self, split: str) -> Path:
        """Patch folder of a split: image/, mask/."""
        return self.dataset / split

    def pseudo_labels(self, round_: int) -> Path:
        """Masks that round `round_` of the decoder is trained on: initial_mask/ for 0, iter_<n>/ after."""
        return self.split("train") / ("initial_mask" if round_ == 0 else f"iter_{round_}")

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def classifier(self) -> Path:
        return self.checkpoints / f"{self.name}_resnet_adl.pth"

    def decoder(self, round_: int | str) -> Path:
        """Decoder of a round (0 is the preliminary one), or `supervised`."""
        if round_ == 0:
            return self.checkpoints / f"{self.name}_sam_pre_decoder.pth"
        if round_ == "supervised":
            return self.checkpoints / f"{self.name}_decoder_supervised.pth"
        return self.checkpoints / f"{self.name}_decoder_iter{round_}.pth"

    @property
    def used_decoder(self) -> Path:
        """The decoder of the round that is used, the one that predicts, under a name without its number: a copy."""
        return self.checkpoints / f"{self.name}_sam_decoder.pth"

    @property
    def student(self) -> Path:
        return self.checkpoints / f"{self.name}_student.pth"

    @property
    def supervised_student(self) -> Path:
        """The student's network trained on true masks."""
        return self.checkpoints / f"{self.name}_student_supervised.pth"

    @property
    def run(self) -> Path:
        return self.root / "runs" / self.name

    @property
    def state(self) -> Path:
        """What each stage knows of itself: done or not, and training states to resume from."""
        return self.run / "state"

    def cams(self, split: str) -> Path:
        """Maps of a split: npz with `names` (N,) and `maps` (N, h, w) float32 in [0, 1]."""
        return self.run / "cams" / f"{split}.npz"

    def embeddings(self, split: str) -> Path:
        return self.run / "embeddings" / split

    @property
    def rounds_csv(self) -> Path:
        """Agreement of each round with the CAM masks, and which round is used."""
        return self.run / "rounds.csv"

    @property
    def metrics_csv(self) -> Path:
        return self.run / "metrics.csv"

    @property
    def test_slides(self) -> Path:
        """Predictions of the whole test slides."""
        return self.run / "slides"

    @property
    def slide_metrics_csv(self) -> Path:
        return self.run / "slide_metrics.csv"

    def results(self, stage: str) -> Path:
        """Figures that a stage found, of which metrics.csv is made."""
        return self.state / f"{stage}.results.json"

    @property
    def report(self) -> Path:
        return self.run / "report.html"

    @property
    def qa(self) -> Path:
        return self.run / "qa"

    @property
    def log(self) -> Path:
        return self.root / f"logging_{self.name}.txt"
