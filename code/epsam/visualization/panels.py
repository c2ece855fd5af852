"""Pictures of patches as squares: maps, prompts and masks drawn over the tissue."""

import base64

import cv2
import numpy as np

from epsam.visualization.drawing import outline, resize_mask, tint
from epsam.visualization.palette import BLACK, MISSED, PREDICTION, PROMPT, TRUTH, WRONG, Colour, map_colours

PANEL_PX = 256


def photo(image: np.ndarray, size: int = PANEL_PX) -> np.ndarray:
    """A patch (H, W, 3) RGB uint8 as a square of `size` px."""
    smaller = max(image.shape) > size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def draw_map(image: np.ndarray, values: np.ndarray, size: int = PANEL_PX) -> np.ndarray:
    """A map (H, W) float in [0, 1] as colour over the greyed patch (H, W, 3)."""
    grey = cv2.cvtColor(cv2.cvtColor(photo(image, size), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    resized = cv2.resize(values.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.addWeighted(grey, 0.4, map_colours(resized), 0.6, 0)


def draw_prompts(panel: np.ndarray, points: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Points (K, 2) and boxes (B, 4) in pixels of a patch of `size` (H, W), drawn on a copy of a panel."""
    panel = panel.copy()
    scale = np.array(panel.shape[1::-1]) / size[::-1]
    for x, y in np.round(points * scale).astype(int).tolist():
        cv2.circle(panel, (x, y), 4, BLACK, -1, cv2.LINE_AA)
        cv2.circle(panel, (x, y), 3, PROMPT, -1, cv2.LINE_AA)
    for x0, y0, x1, y1 in np.round(boxes * np.tile(scale, 2)).astype(int).tolist():
        cv2.rectangle(panel, (x0, y0), (x1 - 1, y1 - 1), BLACK, 4)
        cv2.rectangle(panel, (x0, y0), (x1 - 1, y1 - 1), PROMPT, 2)
    return panel


def draw_mask(image: np.ndarray, mask: np.ndarray, size: int = PANEL_PX, colour: Colour = PREDICTION) -> np.ndarray:
    """A mask (H, W) bool as tint and outline over the patch (H, W, 3)."""
    panel, mask = photo(image, size), resize_mask(mask, (size, size))
    tint(panel, mask, colour)
    outline(panel, mask, colour)
    return panel


def draw_truth(panel: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The outline of an annotation (H, W) bool on a copy of a panel."""
    panel = panel.copy()
    outline(panel, resize_mask(truth, panel.shape[1::-1]), TRUTH)
    return panel


def draw_errors(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray, size: int = PANEL_PX) -> np.ndarray:
    """A prediction (H, W) bool over the patch: what is right, too much and missed; the annotation outlined."""
    prediction, truth = resize_mask(prediction, (size, size)), resize_mask(truth, (size, size))
    return draw_truth(tint_errors(photo(image, size), prediction, truth), truth)


def tint_errors(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The colours of `draw_errors` alone, on a copy of a picture (H, W, 3); masks (H, W) bool."""
    drawn = image.copy()
    for area, colour in ((prediction & truth, PREDICTION), (prediction & ~truth, WRONG), (truth & ~prediction, MISSED)):
        tint(drawn, area, colour, 0.55)
    return drawn


def as_jpeg(image: np.ndarray, longest: int | None = None, quality: int = 82) -> str:
    """RGB uint8 (H, W, 3) as a data URI; shrunk so that no side is longer than `longest` px."""
    scale = (longest or max(image.shape)) / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
