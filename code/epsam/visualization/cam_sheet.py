"""A contact sheet of maps and the masks cut from them, to look at before trusting any figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from epsam.cam.activation import ActivationMap
from epsam.patches.patch import Patch
from epsam.runtime.files import read_image, read_mask, write_png
from epsam.visualization.panels import draw_map, draw_mask, photo

PANEL_PX = 160


ROWS, SETS = 8, 2


GAP_PX = 6


def draw_cam_sheet(path: Path, patches: Sequence[Patch], cams: Mapping[str, ActivationMap], masks: Path) -> None:
    """Write a PNG of up to 16 patches evenly spread over `patches`: photo, map, mask in `masks`, and the true
    mask where there is one (to look at; nothing learns from it)."""
    if not patches:
        return
    chosen = np.unique(np.linspace(0, len(patches) - 1, ROWS * SETS).astype(int))
    strips = [_strip(patches[index], cams[patches[index].name], masks) for index in chosen]
    blank = np.full_like(strips[0], 255)
    strips += [blank] * (-len(strips) % SETS)
    rows = [np.hstack(strips[start : start + SETS]) for start in range(0, len(strips), SETS)]
    write_png(path, np.vstack(rows))


def _strip(patch: Patch, cam: ActivationMap, masks: Path) -> np.ndarray:
    image = read_image(patch.path)
    panels = [photo(image, PANEL_PX), draw_map(image, cam.values, PANEL_PX)]
    panels.append(draw_mask(image, read_mask(masks / f"{patch.name}.png"), PANEL_PX))
    truth = draw_mask(image, read_mask(patch.mask), PANEL_PX) if patch.has_mask else np.full_like(panels[0], 255)
    framed = [
        cv2.copyMakeBorder(panel, 0, GAP_PX, 0, GAP_PX, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for panel in [*panels, truth]
    ]
    return np.hstack([*framed, np.full((PANEL_PX + GAP_PX, 2 * GAP_PX, 3), 255, np.uint8)])
