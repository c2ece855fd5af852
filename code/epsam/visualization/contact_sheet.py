"""Contact sheets: patches in rows with their maps, prompts and masks, to look at before trusting any figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from epsam.cam.activation_map import ActivationMap
from epsam.patches.patch import Patch
from epsam.prompts import PromptSet
from epsam.runtime.files import read_image, read_mask, write_png
from epsam.visualization.drawing import Entry, add_legend, draw_text, fit_text
from epsam.visualization.palette import PREDICTION, PROMPT, TRUTH
from epsam.visualization.panels import draw_map, draw_mask, draw_prompts, draw_truth, photo
from epsam.workspace import Workspace

TILE_PX = 224
CAM_TILE_PX = 160
HEADER_PX, NAME_PX = 24, 20
"""Heights of the titles above the columns and of the line above each row."""
GAP_PX = 6
ROWS = 8
"""Patches of the sheet of a round; that of the maps shows twice as many, side by side."""

CAM_MAP = "class activation map (CAM)"
MASK_ENTRY = Entry("mask", PREDICTION)
TRUTH_ENTRY = Entry("annotation, where there is one; nothing learns from it", TRUTH, "line")
PROMPT_ENTRY = Entry("prompt given to SAM", PROMPT, "point")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Row:
    """One patch of the sheet of a round."""

    patch: Patch
    cam: ActivationMap
    prompts: PromptSet
    label: np.ndarray
    """(H, W) bool."""
    caption: str


@dataclass(frozen=True)
class Strip:
    """Panels side by side, squares of one size, RGB uint8, and the text above them."""

    text: str
    panels: Sequence[np.ndarray]


def sheet_path(workspace: Workspace, round_: int) -> Path:
    """The sheet of a round."""
    return workspace.run / f"labels_round{round_}.png"


def evenly_spaced(items: Sequence[Item], count: int = ROWS) -> list[Item]:
    """Up to `count` items, evenly spaced from the first to the last."""
    if not items:
        return []
    return [items[index] for index in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def write_sheet(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG of what a round learns from: patch, CAM, prompts and label, one patch a line."""
    strips = [Strip(f"{row.caption}   {row.patch.name}", list(_round_panels(row))) for row in rows]
    titles = ("patch", "CAM", "CAM and prompts", "label")
    legend = [Entry("label", PREDICTION), TRUTH_ENTRY, PROMPT_ENTRY]
    write_png(path, add_legend(arrange(titles, strips), legend, CAM_MAP))


def _round_panels(row: Row) -> Iterator[np.ndarray]:
    image = read_image(row.patch.path)
    yield _with_truth(photo(image, TILE_PX), row.patch)
    heat = draw_map(image, row.cam.values, TILE_PX)
    yield heat
    yield draw_prompts(heat, row.prompts.points, row.prompts.boxes, image.shape[:2])
    yield _with_truth(draw_mask(image, row.label, TILE_PX), row.patch)


def draw_cam_sheet(path: Path, patches: Sequence[Patch], cams: Mapping[str, ActivationMap], masks: Path) -> None:
    """Write a PNG of up to 16 patches evenly spread over `patches`: photo, map, and the mask in the folder `masks`."""
    if not patches:
        return
    strips = [
        Strip(
            f"{patch.name}   cut at {cams[patch.name].threshold:.2f}",
            list(_cam_panels(patch, cams[patch.name], read_mask(masks / f"{patch.name}.png"))),
        )
        for patch in evenly_spaced(patches, 2 * ROWS)
    ]
    sheet = arrange(("patch", "CAM", "CAM mask"), strips, sets=2)
    write_png(path, add_legend(sheet, [Entry("CAM mask", PREDICTION), TRUTH_ENTRY], CAM_MAP))


def _cam_panels(patch: Patch, cam: ActivationMap, mask: np.ndarray) -> Iterator[np.ndarray]:
    image = read_image(patch.path)
    yield _with_truth(photo(image, CAM_TILE_PX), patch)
    yield draw_map(image, cam.values, CAM_TILE_PX)
    yield _with_truth(draw_mask(image, mask, CAM_TILE_PX), patch)


def _with_truth(panel: np.ndarray, patch: Patch) -> np.ndarray:
    return draw_truth(panel, read_mask(patch.mask)) if patch.has_mask else panel


def arrange(titles: Sequence[str], strips: Sequence[Strip], sets: int = 1) -> np.ndarray:
    """Titled columns with one strip a row, or `sets` of them side by side; at least one strip."""
    drawn = [_draw_strip(strip) for strip in strips]
    blank = np.full_like(drawn[0], 255)
    drawn += [blank] * (-len(drawn) % sets)
    rows = [np.hstack(drawn[start : start + sets]) for start in range(0, len(drawn), sets)]
    header = np.full((HEADER_PX, rows[0].shape[1], 3), 255, np.uint8)
    width = strips[0].panels[0].shape[1] + GAP_PX
    for set_ in range(min(sets, len(strips))):
        for column, title in enumerate(titles):
            draw_text(header, set_ * drawn[0].shape[1] + column * width + GAP_PX, 5, title)
    return np.vstack([header, *rows])


def _draw_strip(strip: Strip) -> np.ndarray:
    side = strip.panels[0].shape[0]
    width = len(strip.panels) * (side + GAP_PX) + 2 * GAP_PX
    drawn = np.full((NAME_PX + side + GAP_PX, width, 3), 255, np.uint8)
    draw_text(drawn, GAP_PX, 3, fit_text(strip.text, width - 3 * GAP_PX, 12), (70, 70, 70), 12)
    for column, panel in enumerate(strip.panels):
        left = GAP_PX + column * (side + GAP_PX)
        drawn[NAME_PX : NAME_PX + side, left : left + side] = panel
    return drawn
