"""The colours of all pictures and of the report: a legend learned once holds everywhere.

Seven of the colours of Okabe and Ito, which people with any common kind of colour blindness can tell apart
(https://jfly.uni-koeln.de/color/), each with one meaning, and a brown; maps in viridis,
which is as safe.
"""

import cv2
import numpy as np

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)

PREDICTION = (0, 114, 178)
"""Blue: what is predicted or learned as tumour; in comparisons, what of it is right."""
TRUTH = (240, 228, 66)
"""Yellow: the annotation."""
MISSED = TRUTH
"""Of the annotation, what is not predicted."""
WRONG = (213, 94, 0)
"""Vermillion: predicted, but not in the annotation."""
PROMPT = WHITE
"""Points and boxes given to SAM, edged in black: seen on every colour of the map and of the tissue."""
TISSUE = (0, 158, 115)
"""Green: the outline of the tissue."""
EXCLUDED = BLACK
"""Areas taken out of the annotation."""
TUMOUR_PATCH = (230, 159, 0)
"""Orange: patches with tumour, for the classifier and for SAM."""
CLASSIFIER_PATCH = (146, 73, 0)
"""Brown: patches with tumour for the classifier only; the palette's own eighth colour, purple, is that of the stain."""
NORMAL_PATCH = (86, 180, 233)
"""Sky blue: patches without tumour."""

MAP = "viridis"
"""Matplotlib's name of the colours of class activation maps and probabilities."""
OPACITY = 0.5
"""Of the colours of high probabilities over a slide."""
FAINT = 0.1
"""Probability up to which a slide is shown as it is: a faint tint of all tissue looks like a finding."""
_MAP_RGB = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS).reshape(-1, 3)[:, ::-1]


def map_colours(values: np.ndarray) -> np.ndarray:
    """Colours of a map (H, W), float in [0, 1], as RGB uint8 (H, W, 3)."""
    return _MAP_RGB[np.round(values.clip(0, 1) * 255).astype(np.uint8)]


def map_opacity(values: np.ndarray) -> np.ndarray:
    """How much of the colour of a probability, float in [0, 1], is laid over a slide: none of what is next to nothing."""
    return OPACITY * np.clip((values - FAINT) * 1.7, 0, 1)


def edge_of(colour: Colour) -> Colour:
    """Black around light colours and white around dark ones, so that lines are seen on any tissue."""
    red, green, blue = colour
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE


def css(colour: Colour) -> str:
    """A colour as CSS, XML and Matplotlib write it: #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
