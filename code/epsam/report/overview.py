"""One picture of the method, out of a run: what becomes of a patch step by step."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from epsam.cam.activation import resize_map
from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation.metrics import dice
from epsam.runtime.device import Hardware
from epsam.runtime.files import atomic, read_image, read_mask
from epsam.sam.samples import Example, Sample
from epsam.sam.session import SamSession
from epsam.segmenter import segment_stored
from epsam.visualization.contact_sheet import evenly_spaced
from epsam.visualization.panels import draw_map, draw_mask, draw_prompts, photo
from epsam.workspace import Workspace

TITLES = ("patch", "class activation map", "mask and prompts", "pseudo-label", "prediction", "annotation")


PANEL_PX = 320


def draw_overview(config: Config, workspace: Workspace, hardware: Hardware, path: Path, rows: int = 4) -> None:
    """Write a PNG of `rows` training patches: patch, CAM, prompts, pseudo-label, prediction and annotation.

    Training patches, because these alone have pseudo-labels: those that the last round learned from, evenly spread
    over the split. Raises DataError when none of them has a true mask to show beside it.
    """
    session = SamSession(config, workspace, hardware)
    labels = workspace.pseudo_labels(config.retrain.rounds)
    kept = [
        example
        for example in session.examples("train")
        if example.patch.has_mask and (labels / f"{example.patch.name}.png").is_file()
    ]
    if not kept:
        raise DataError(f"{labels}: no pseudo-label of a patch that has a true mask; run the stages up to retrain")
    session.use_decoder(workspace.decoder(config.retrain.rounds))
    lines = [
        _panels(labels, sample, mask) for sample, mask in segment_stored(session, "train", evenly_spaced(kept, rows))
    ]
    figure, grid = plt.subplots(
        len(lines), len(TITLES), figsize=(12, 2.16 * len(lines) + 0.3), dpi=120, squeeze=False, layout="constrained"
    )
    for row, line in zip(grid, lines, strict=True):
        for axes, (image, note) in zip(row, line, strict=True):
            axes.imshow(image)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.set_xlabel(note, fontsize=9, labelpad=3)
    for axes, title in zip(grid[0], TITLES, strict=True):
        axes.set_title(title, fontsize=11)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
    plt.close(figure)


def _panels(labels: Path, sample: Sample, prediction: np.ndarray) -> list[tuple[np.ndarray, str]]:
    example: Example = sample.example
    image, truth = read_image(example.patch.path), read_mask(example.patch.mask)
    label = read_mask(labels / f"{example.patch.name}.png")
    first = sample.prompted.cam_mask
    prompted = draw_prompts(draw_mask(image, first, PANEL_PX), sample.prompts.points, sample.prompts.boxes, truth.shape)
    return [
        (photo(image, PANEL_PX), ""),
        (draw_map(image, resize_map(example.cam.values, truth.shape), PANEL_PX), ""),
        *(
            (picture, f"Dice {dice(mask, truth):.2f}")
            for picture, mask in (
                (prompted, first),
                (draw_mask(image, label, PANEL_PX), label),
                (draw_mask(image, prediction, PANEL_PX), prediction),
            )
        ),
        (draw_mask(image, truth, PANEL_PX), ""),
    ]
