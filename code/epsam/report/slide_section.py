"""The report's results slide by slide: figures, and the predicted patches in their places on the tissue."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from epsam.config.schema import Config
from epsam.errors import SlideError
from epsam.evaluation.methods import Figures, Method, figures_csv, final_method, predictions, read_figures
from epsam.patches.grid import window_px
from epsam.patches.patch import Location, Patch, list_patches, location_of
from epsam.patches.tables import read_summary
from epsam.runtime.files import read_mask
from epsam.runtime.records import is_plain
from epsam.slides.overview import overview
from epsam.slides.remote import RemoteSlide
from epsam.slides.slide import plausible_mpp
from epsam.visualization.panels import as_jpeg, tint_errors
from epsam.workspace import Workspace

PICTURE_PX = 720


PICTURES = 12


FRAME = (70, 70, 70)


FADED = 0.4
"""Of the contrast that is left where no patch lies."""


def slide_section(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Everything of "Slide by slide"; no rows where the names of the patches do not tell the slide.

    Whole slides are not predicted for it, which would take longer than all stages before: it shows the test patches
    that the evaluation predicted, where they lie.
    """
    final = Method(final_method(config, workspace))
    figures = {name: read_figures(figures_csv(workspace, name)) for name in ("cam", "sam", final.name)}
    names = figures["cam"].names
    locations = {name: location for name in names if (location := location_of(name))}
    if len(locations) < len(names):
        return {"rows": []}
    owners = np.array([locations[name].slide for name in names])
    slides = sorted(set(owners.tolist()))
    marked = figures[final.name].gated(config.inference.classifier_probability).overlaps[:, 1] > 0
    rows = {slide: _row(slide, owners == slide, figures, marked) for slide in slides}
    # Slides with tumour first: there is more to see on them.
    order = sorted(slides, key=lambda slide: (rows[slide][1] == "0", slide))
    pictures = [
        picture
        for slide in order[:PICTURES]
        if (
            picture := _picture(
                config,
                workspace,
                slide,
                {name: location for name, location in locations.items() if location.slide == slide},
                rows[slide],
            )
        )
    ]
    return {
        "columns": (
            "Slide",
            "Tumour patches",
            *(Method(name).title for name in figures),
            "Normal patches",
            "Marked in part",
        ),
        "rows": [rows[slide] for slide in slides],
        "pictures": pictures,
        "explanation": (
            f"Test patches in their places, as predicted ({final.title.lower()}), and how many of the normal ones it marks "
            "in part as tumour. Dice is the mean over the patches with tumour. "
            "What is pale was not predicted here; ./infer.sh predicts whole slides."
        ),
        "more": f"{len(order) - PICTURES} more slides are in the table alone." if len(order) > PICTURES else "",
    }


def _row(slide: str, own: np.ndarray, figures: dict[str, Figures], marked: np.ndarray) -> tuple[str, ...]:
    first = next(iter(figures.values()))
    tumour, normal = own & (first.labels == 1), own & (first.labels == 0)
    dice = (f"{f.dice[tumour].mean():.3f}" if tumour.any() else "–" for f in figures.values())
    return (slide, str(tumour.sum()), *dice, str(normal.sum()), str(marked[normal].sum()))


def _picture(
    config: Config, workspace: Workspace, slide: str, places: dict[str, Location], row: Sequence[str]
) -> dict[str, str] | None:
    """The part of the slide where its test patches lie; None when the slide cannot be read any more."""
    records = [row for row in read_summary(workspace) if row.slide == slide]
    if not records:
        return None
    record, file = records[0], records[0].path.rpartition("/")[2]
    if not is_plain(file):
        return None
    side = window_px(config.patches, plausible_mpp(record.mpp_x, record.mpp_y))
    corners = np.array([(place.x, place.y) for place in places.values()])
    low, high = corners.min(0) - side // 2, corners.max(0) + side + side // 2
    downsample = max(1.0, float((high - low).max()) / PICTURE_PX)
    try:
        with RemoteSlide(workspace.slides / file, config.slides.reader, config.slides.asap_path) as source:
            low, high = np.maximum(low, 0), np.minimum(high, source.size)
            image = overview(source, downsample, window=(*low.tolist(), *(high - low).tolist()))
    except SlideError:
        return None
    squares = {
        name: np.rint(
            (np.array([place.x, place.y, place.x + side, place.y + side]) - np.tile(low, 2)) / downsample
        ).astype(int)
        for name, place in places.items()
    }
    patches = {patch.name: patch for patch in list_patches(workspace.split("test"))}
    masks = predictions(workspace, final_method(config, workspace))
    drawn = draw_patches(
        image, [(square, *_masks(masks / f"{name}.png", patches[name])) for name, square in squares.items()]
    )
    dice = f"Dice {row[4]} on {row[1]} patches with tumour; " if row[1] != "0" else ""
    caption = f"{dice}{row[5]} normal patches, {row[6]} of them marked in part as tumour"
    return {
        "title": slide,
        "caption": caption,
        "uri": as_jpeg(drawn),
        "alt": f"Slide {slide} with the predicted test patches in their places. {caption}.",
    }


def _masks(prediction: Any, patch: Patch) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Predicted and true mask of a patch; None for one that was not predicted, or has no tumour."""
    return (
        read_mask(prediction) if prediction.is_file() else None,
        read_mask(patch.mask) if patch.label and patch.has_mask else None,
    )


def draw_patches(
    image: np.ndarray, patches: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]
) -> np.ndarray:
    """Patches on a picture RGB uint8 (H, W, 3), which pales around them: right, too much, missed as in the panels.

    `patches`: the square x0 y0 x1 y1 of each in the picture, its predicted and its true mask bool, None for none.
    Where patches overlap, a place is predicted tumour when at least half of those that show it say so.
    """
    predicted, seen, true = (np.zeros(image.shape[:2], np.float32) for _ in range(3))
    for square, prediction, truth in patches:
        for canvas, mask in ((predicted, prediction), (seen, np.ones((1, 1), bool)), (true, truth)):
            if mask is not None:
                _add(canvas, square, mask)
    drawn = image.copy()
    drawn[seen == 0] = (255 - FADED * (255.0 - drawn[seen == 0])).astype(np.uint8)
    drawn = tint_errors(drawn, (seen > 0) & (2 * predicted >= seen), true > 0)
    for (x0, y0, x1, y1), _, _ in patches:
        cv2.rectangle(drawn, (int(x0), int(y0)), (int(x1) - 1, int(y1) - 1), FRAME, 1)
    return drawn


def _add(canvas: np.ndarray, square: np.ndarray, mask: np.ndarray) -> None:
    """Add a mask, resized to the square, to the part of it that lies on the canvas."""
    x0, y0, x1, y1 = square.tolist()
    resized = cv2.resize(mask.astype(np.uint8), (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)
    height, width = canvas.shape
    left, top = max(x0, 0), max(y0, 0)
    part = canvas[top : min(y1, height), left : min(x1, width)]
    part += resized[top - y0 : top - y0 + part.shape[0], left - x0 : left - x0 + part.shape[1]]
