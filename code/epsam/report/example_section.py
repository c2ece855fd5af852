"""The report's best, middling and worst test patches, step by step from patch to prediction."""

from typing import Any

import numpy as np

from epsam.cam.activation_map import ActivationMap, resize_map
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams
from epsam.config.schema import Config
from epsam.evaluation.methods import Figures, Method, figures_csv, final_method, predictions, read_figures
from epsam.patches.patch import Patch, location_of, patches_for_sam
from epsam.patches.tables import read_summary
from epsam.prompts import PromptSet, prompts_for
from epsam.report.result_section import method_rows
from epsam.runtime.files import read_image, read_mask
from epsam.runtime.seeds import generator
from epsam.slides.slide import plausible_mpp
from epsam.visualization.drawing import draw_scale_bar
from epsam.visualization.palette import TRUTH
from epsam.visualization.panels import (
    PANEL_PX,
    as_jpeg,
    draw_errors,
    draw_map,
    draw_mask,
    draw_prompts,
    draw_truth,
    photo,
)
from epsam.workspace import Workspace

CASES = 3


def example_section(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Everything of the section "Examples"."""
    final = Method(final_method(config, workspace))
    missing = "The test split has no true masks to order its patches by."
    if final.name not in method_rows(workspace):
        return {"groups": [], "missing": missing}
    figures = read_figures(figures_csv(workspace, final.name)).positives()
    first = read_figures(figures_csv(workspace, "cam")).positives()
    patches = {patch.name: patch for patch in patches_for_sam(workspace, "test")}
    cams = load_cams(workspace.cams("test"))
    groups = [
        {
            "title": title,
            "cases": [
                _case(config, workspace, patches[figures.names[i]], cams[figures.names[i]], figures, first, i)
                for i in chosen
            ],
        }
        for title, chosen in _choose(figures.dice).items()
    ]
    return {
        "groups": groups,
        "missing": missing,
        "explanation": (
            f"Ordered by the Dice of {final.title.lower()}, best first; chosen by rank alone. Each row reads from "
            "patch to prediction: the map that the classifier gives, the prompts drawn from it, the mask cut from it, what "
            f"{final.title.lower()} predicts, and the annotation."
        ),
    }


def _choose(dice: np.ndarray) -> dict[str, np.ndarray]:
    """Ranks of the best, the middling and the worst patches, none twice."""
    order = np.argsort(-dice, kind="stable")
    count = min(CASES, -(-len(order) // 3))
    best, rest = order[:count], order[count:]
    worst, middle = rest[len(rest) - min(count, len(rest)) :], rest[: max(0, len(rest) - count)]
    start = max(0, (len(middle) - count) // 2)
    chosen = {"Best": best, "Median": middle[start : start + count], "Worst": worst}
    return {title: ranks for title, ranks in chosen.items() if len(ranks)}


def prompts_of(config: Config, patch: Patch, cam: ActivationMap, size: tuple[int, int]) -> PromptSet:
    """The prompts that a patch was predicted from, in patch pixels; `cam` is its map."""
    rng = generator(config.finetune.seed, patch.name, "predict", 0)
    return prompts_for(cam_mask(cam, config.cam, size), resize_map(cam.values, size), config.prompts, rng)


def _case(
    config: Config, workspace: Workspace, patch: Patch, cam: ActivationMap, figures: Figures, first: Figures, row: int
) -> dict[str, Any]:
    image, truth = read_image(patch.path), read_mask(patch.mask)
    size = truth.shape
    prediction = read_mask(predictions(workspace, final_method(config, workspace)) / f"{patch.name}.png")
    prompts = prompts_of(config, patch, cam, size)
    mask = cam_mask(cam, config.cam, size)
    heat = draw_prompts(draw_map(image, resize_map(cam.values, size)), prompts.points, prompts.boxes, size)
    shown = {
        "Patch": (_with_scale_bar(config, workspace, patch, image), "as cut from the slide, with a scale bar"),
        "CAM and prompts": (
            heat,
            f"class activation map with {len(prompts.points)} points and {len(prompts.boxes)} boxes",
        ),
        "CAM mask": (draw_truth(draw_mask(image, mask), truth), f"covers {mask.mean():.0%} of the patch"),
        "Prediction": (
            draw_errors(image, prediction, truth),
            f"covers {prediction.mean():.0%} of the patch, Dice {figures.dice[row]:.3f}",
        ),
        "Annotation": (draw_mask(image, truth, colour=TRUTH), f"covers {truth.mean():.0%} of the patch"),
    }
    return {
        "name": _location_text(patch.name),
        "dice": f"{figures.dice[row]:.3f}",
        "note": f"IoU {figures.iou[row]:.3f}; CAM mask alone: Dice {first.dice[row]:.3f}",
        "images": [
            {"title": title, "uri": as_jpeg(panel), "size": PANEL_PX, "alt": f"{title} of {patch.name}: {what}"}
            for title, (panel, what) in shown.items()
        ],
    }


def _location_text(name: str) -> str:
    """The slide and where on it the patch lies, as a viewer shows positions."""
    location = location_of(name)
    return f"{location.slide}, x {location.x:,}, y {location.y:,} at level 0" if location else name


def _with_scale_bar(config: Config, workspace: Workspace, patch: Patch, image: np.ndarray) -> np.ndarray:
    """The patch as a panel, with a scale bar where the resolution is known."""
    panel = photo(image)
    location = location_of(patch.name)
    slides = [row for row in read_summary(workspace) if location and row.slide == location.slide]
    native = plausible_mpp(slides[0].mpp_x, slides[0].mpp_y) if slides else None
    mpp = (config.patches.target_mpp or native[0]) if native else None
    if mpp:
        draw_scale_bar(panel, mpp * image.shape[1] / PANEL_PX)
    return panel
