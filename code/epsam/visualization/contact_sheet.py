"""A picture of what a round learns from: patch, CAM, points and label side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from epsam.cam.activation import ActivationMap, resize_map
from epsam.patches.patch import Patch
from epsam.prompts import PromptSet
from epsam.runtime.files import read_image, read_mask, write_png
from epsam.workspace import Workspace

TILE_PX = 224


HEADER_PX = 22


GAP_PX = 4


ROWS = 8


TITLES = ("patch, truth", "CAM", "prompts", "label, truth")


TRUTH, LABEL, PROMPT = (0, 160, 0), (255, 220, 0), (0, 90, 255)
"""RGB of the outlines and points."""


@dataclass(frozen=True)
class Row:
    """One patch of the sheet."""

    patch: Patch
    cam: ActivationMap
    prompts: PromptSet
    label: np.ndarray
    """(H, W) bool."""
    caption: str


def sheet_path(workspace: Workspace, round_: int) -> Path:
    """The sheet of a round."""
    return workspace.run / f"labels_round{round_}.png"


def evenly_spaced(items: Sequence, count: int = ROWS) -> list:
    """Up to `count` items, evenly spaced from the first to the last."""
    if not items:
        return []
    return [items[index] for index in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def write_sheet(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG with one line per row; the truth is outlined where the patch has a mask, for the eye alone."""
    lines = [np.hstack([_framed(tile) for tile in _tiles(row)]) for row in rows]
    header = _header([_framed(np.zeros((TILE_PX, TILE_PX, 3), np.uint8)).shape[1]] * len(TITLES))
    write_png(path, np.vstack([header, *lines]))


def _tiles(row: Row) -> list[np.ndarray]:
    image = read_image(row.patch.path)
    truth = read_mask(row.patch.mask) if row.patch.has_mask else None
    size = image.shape[:2]
    heat = cv2.applyColorMap((resize_map(row.cam.values, size) * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    cam = cv2.addWeighted(image, 0.5, cv2.cvtColor(heat, cv2.COLOR_BGR2RGB), 0.5, 0)
    tiles = [_scaled(picture) for picture in (image, cam, image, image)]
    scale = TILE_PX / max(size)
    for x, y in row.prompts.points:
        cv2.circle(tiles[2], (round(float(x) * scale), round(float(y) * scale)), 2, PROMPT, -1, cv2.LINE_AA)
    for x0, y0, x1, y1 in (row.prompts.boxes * scale).round().astype(int).tolist():
        cv2.rectangle(tiles[2], (x0, y0), (x1 - 1, y1 - 1), PROMPT, 1)
    _outline(tiles[3], row.label, LABEL)
    if truth is not None:
        for tile in (tiles[0], tiles[3]):
            _outline(tile, truth, TRUTH)
    cv2.putText(tiles[3], row.caption, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(tiles[3], row.caption, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return tiles


def _scaled(image: np.ndarray) -> np.ndarray:
    scale = TILE_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _outline(tile: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    small = cv2.resize(mask.astype(np.uint8), tile.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, contours, -1, colour, 2)


def _framed(tile: np.ndarray) -> np.ndarray:
    """The tile in a white square of the same size for every patch."""
    side = TILE_PX + GAP_PX
    return np.pad(tile, ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0)), constant_values=255)


def _header(widths: Sequence[int]) -> np.ndarray:
    header = np.full((HEADER_PX, sum(widths), 3), 255, np.uint8)
    for column, title in enumerate(TITLES):
        left = sum(widths[:column]) + 4
        cv2.putText(header, title, (left, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return header
