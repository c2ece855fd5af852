"""Pictures of patches: maps, prompts and masks drawn over the tissue."""

import base64

import cv2
import numpy as np

PANEL_PX = 256


TUMOUR = (0, 114, 178)


TRUTH = (255, 255, 255)


WRONG = (213, 94, 0)


MISSED = (240, 228, 66)


def photo(image: np.ndarray, size: int = PANEL_PX) -> np.ndarray:
    """A patch (H, W, 3) RGB uint8 as a square of `size` px."""
    smaller = max(image.shape) > size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def draw_map(image: np.ndarray, values: np.ndarray, size: int = PANEL_PX) -> np.ndarray:
    """A map (H, W) float in [0, 1] as colour over the greyed patch (H, W, 3)."""
    grey = cv2.cvtColor(cv2.cvtColor(photo(image, size), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    resized = cv2.resize(values.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    colour = cv2.applyColorMap(np.round(resized.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.addWeighted(grey, 0.4, cv2.cvtColor(colour, cv2.COLOR_BGR2RGB), 0.6, 0)


def draw_prompts(panel: np.ndarray, points: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Points (K, 2) and boxes (B, 4) in pixels of a patch of `size` (H, W), drawn on a copy of a panel."""
    panel = panel.copy()
    scale = np.array(panel.shape[1::-1]) / size[::-1]
    for x, y in np.round(points * scale).astype(int):
        cv2.circle(panel, (x, y), 4, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(panel, (x, y), 3, (120, 255, 120), -1, cv2.LINE_AA)
    for x0, y0, x1, y1 in np.round(boxes * np.tile(scale, 2)).astype(int):
        cv2.rectangle(panel, (x0, y0), (x1 - 1, y1 - 1), (0, 0, 0), 4)
        cv2.rectangle(panel, (x0, y0), (x1 - 1, y1 - 1), (120, 255, 120), 2)
    return panel


def draw_mask(image: np.ndarray, mask: np.ndarray, size: int = PANEL_PX) -> np.ndarray:
    """A mask (H, W) bool as tint and outline over the patch (H, W, 3)."""
    panel, mask = photo(image, size), _resized(mask, size)
    panel[mask] = (0.6 * panel[mask] + 0.4 * np.array(TUMOUR)).astype(np.uint8)
    return _outlined(panel, mask, TUMOUR, 3)


def draw_errors(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray, size: int = PANEL_PX) -> np.ndarray:
    """A prediction (H, W) bool over the patch: blue where right, orange too much, yellow missed; truth outlined."""
    prediction, truth = _resized(prediction, size), _resized(truth, size)
    return _outlined(tint_errors(photo(image, size), prediction, truth), truth, TRUTH, 2)


def tint_errors(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The colours of `draw_errors` alone, on a copy of a picture (H, W, 3); masks (H, W) bool."""
    drawn = image.copy()
    for area, colour in ((prediction & truth, TUMOUR), (prediction & ~truth, WRONG), (truth & ~prediction, MISSED)):
        drawn[area] = (0.6 * drawn[area] + 0.4 * np.array(colour)).astype(np.uint8)
    return drawn


def _resized(mask: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST) > 0


def _outlined(panel: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width: int) -> np.ndarray:
    """Draws where the mask ends, which the border of the patch is not."""
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    panel[cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, brush) > 0] = colour
    return panel


def as_jpeg(image: np.ndarray, longest: int | None = None, quality: int = 82) -> str:
    """RGB uint8 (H, W, 3) as a data URI; shrunk so that no side is longer than `longest` px."""
    scale = (longest or max(image.shape)) / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
