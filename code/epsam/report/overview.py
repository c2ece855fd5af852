"""One picture of the method, out of a run: what becomes of a patch step by step."""

from pathlib import Path

import numpy as np

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation.metrics import dice
from epsam.rounds import used_round
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_image, read_mask, write_png
from epsam.sam.samples import Example, Sample
from epsam.sam.session import SamSession
from epsam.segmenter import segment_stored
from epsam.visualization.contact_sheet import CAM_MAP, PROMPT_ENTRY, Strip, arrange, evenly_spaced
from epsam.visualization.drawing import Entry, add_legend
from epsam.visualization.palette import PREDICTION, TRUTH
from epsam.visualization.panels import draw_map, draw_mask, draw_prompts, draw_truth, photo
from epsam.workspace import Workspace

TITLES = ("patch", "class activation map", "CAM mask and prompts", "pseudo-label", "prediction", "annotation")
PANEL_PX = 256


def draw_overview(config: Config, workspace: Workspace, hardware: Hardware, path: Path, rows: int = 4) -> None:
    """Write a PNG of `rows` training patches: patch, CAM, prompts, pseudo-label, prediction and annotation.

    Training patches, because these alone have pseudo-labels: those that the used round learned from, evenly spread
    over the split. Raises DataError when none of them has a true mask to show beside it.
    """
    session = SamSession(config, workspace, hardware)
    used = used_round(workspace)
    labels = workspace.pseudo_labels(used)
    kept = [
        example
        for example in session.examples("train")
        if example.patch.has_mask and (labels / f"{example.patch.name}.png").is_file()
    ]
    if not kept:
        raise DataError(f"{labels}: no pseudo-label of a patch that has a true mask; run the stages up to retrain")
    session.use_decoder(workspace.decoder(used))
    strips = [
        _strip(labels, sample, mask) for sample, mask in segment_stored(session, "train", evenly_spaced(kept, rows))
    ]
    legend = [Entry("mask", PREDICTION), Entry("annotation", TRUTH, "line"), PROMPT_ENTRY]
    write_png(path, add_legend(arrange(TITLES, strips), legend, CAM_MAP))


def _strip(labels: Path, sample: Sample, prediction: np.ndarray) -> Strip:
    example: Example = sample.example
    image, truth = read_image(example.patch.path), read_mask(example.patch.mask)
    label, cam = read_mask(labels / f"{example.patch.name}.png"), sample.prompted.cam_mask
    masks = {"CAM mask": cam, "pseudo-label": label, "prediction": prediction}
    panels = [draw_truth(draw_mask(image, mask, PANEL_PX), truth) for mask in masks.values()]
    panels[0] = draw_prompts(panels[0], sample.prompts.points, sample.prompts.boxes, truth.shape)
    return Strip(
        "Dice: " + ", ".join(f"{name} {dice(mask, truth):.3f}" for name, mask in masks.items()),
        [
            photo(image, PANEL_PX),
            draw_map(image, example.cam.values, PANEL_PX),
            *panels,
            draw_mask(image, truth, PANEL_PX, TRUTH),
        ],
    )
