"""The classifier's learning curves as a picture."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from epsam.runtime.files import atomic
from epsam.runtime.fitting import Fit


def draw_curves(path: Path, fit: Fit) -> None:
    """Write a PNG of the losses and the validation AUC over epochs; the kept epoch is marked."""
    figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=120)
    losses, areas = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in fit.history]
    for axes, keys in ((losses, ("train_loss", "val_loss")), (areas, ("val_auc",))):
        for key in keys:
            axes.plot(epochs, [row[key] for row in fit.history], marker="o", markersize=3, label=key.replace("_", " "))
        axes.axvline(fit.best_epoch, color="grey", linestyle=":", label=f"kept: epoch {fit.best_epoch}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    losses.set_ylabel("binary cross-entropy")
    areas.set_ylabel("AUC")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
