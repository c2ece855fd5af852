"""A folder of patches in, their masks and overlays out; with true masks, the figures of the method as well."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field

from epsam.errors import DataError, EpsamError
from epsam.evaluation.metrics import dice, iou
from epsam.inference.output import OutputFolder
from epsam.results import result_line
from epsam.runtime.failures import OF_THE_ITEM, guard, log_failure
from epsam.runtime.files import read_image, read_mask, write_csv, write_png
from epsam.runtime.image_formats import image_size
from epsam.runtime.log import logger, progress
from epsam.runtime.records import PlainName, Record, explain, parse_record
from epsam.runtime.text import listed
from epsam.segmenter import ImageSegmenter
from epsam.visualization.drawing import Entry, add_legend, outline, resize_mask, tint
from epsam.visualization.palette import PREDICTION, TRUTH

COLUMNS = ["patch", "status", "reason", "classifier_probability", "segmented", "tumour_fraction", "dice", "iou"]


OVERLAY_PX = 512
"""Least longer side of an overlay; smaller patches are enlarged."""


@dataclass(frozen=True)
class Input:
    """A patch to predict."""

    name: str
    image: Path
    known_positive: bool
    """Its name ends in _1: SAM sees it whatever the classifier says, as in training and evaluation."""
    mask: Path | None
    """Its true mask, where there is one."""


Batch = list[tuple[Input, np.ndarray]]
"""Patches with their images, RGB uint8 (H, W, 3) of one size."""


Failed = dict[str, EpsamError]
"""Why, by the patch's name."""


def find_inputs(folder: Path) -> list[Input]:
    """PNGs of `folder`/image with the masks of the same name in `folder`/mask.

    Raises DataError when there is no patch, or when there are masks but none has the name of a patch.
    """
    images = sorted(p for p in (folder / "image").glob("*.png") if not p.name.startswith("."))
    if not images:
        raise DataError(f"{folder / 'image'}: no PNG in it; patches lie there as PNG, their masks in mask/")
    masks = {p.name: p for p in (folder / "mask").glob("*.png") if not p.name.startswith(".")}
    inputs = [Input(p.stem, p, p.stem.endswith("_1"), masks.pop(p.name, None)) for p in images]
    if masks and all(patch.mask is None for patch in inputs):
        raise DataError(
            f"{folder / 'mask'}: none of its {len(masks)} masks has the name of a patch (e.g. mask "
            f"{min(masks)}, patch {images[0].name}); give them the same names, or take mask/ away"
        )
    if masks:
        logger.warning(f"{folder / 'mask'}: {len(masks)} masks have no patch of their name, e.g. {min(masks)}")
    without = [p.name for p in inputs if p.known_positive and p.mask is None]
    if without and len(without) < len(inputs) and any(p.mask for p in inputs):
        logger.warning(
            f"{folder / 'mask'}: {len(without)} patches named _1 have no mask, e.g. {without[0]}; they are "
            "predicted and left out of the figures"
        )
    return inputs


def check_masks(inputs: list[Input]) -> None:
    """Raise DataError when a mask has another size than its patch; only the files' headers are read."""
    for patch in inputs:
        mask, image = _size(patch.mask), _size(patch.image)
        if mask and image and mask != image:
            raise DataError(
                f"{patch.mask}: {mask[0]} x {mask[1]} px, but its patch has {image[0]} x {image[1]} px; cut "
                "both at the same size"
            )


def _size(path: Path | None) -> tuple[int, int] | None:
    """Width and height; None without a file, and for one that is damaged: its patch fails when it is read."""
    if path is None:
        return None
    try:
        with guard(path):
            return image_size(path)
    except OF_THE_ITEM:
        return None


def predict_patches(folder: Path, outputs: OutputFolder, models: ImageSegmenter) -> None:
    """Write mask/<name>.png, overlay/<name>.png and predictions.csv to `outputs`; log the figures if masks exist.

    Goes on after the patches that state/patches.jsonl names and whose mask and overlay are there. Figures are means
    over the patches whose true mask holds tumour, as in the evaluation of a run.
    """
    output = outputs.path
    inputs, done = find_inputs(folder), Notes(output / "state" / "patches.jsonl")
    failed: Failed = {}
    left = [
        patch
        for patch in inputs
        if patch.name not in done.rows
        or not all((output / kind / f"{patch.name}.png").is_file() for kind in ("mask", "overlay"))
    ]
    outputs.claim(["predictions.csv"], "")
    outputs.claim([f"{patch.name}.png" for patch in left], "mask", "overlay")
    with progress(total=len(inputs), initial=len(inputs) - len(left), desc=folder.name, unit="patch") as bar:
        for batch in _read_batches(left, models.hardware.decoder_batch, failed):
            done.add(_predict_guarded(batch, output, models, failed))
            bar.update(len(batch))
    rows = [_row(patch, done, failed, output) for patch in inputs]
    write_csv(output / "predictions.csv", rows, COLUMNS)
    logger.info(f"{len(rows) - len(failed)} patches: masks, overlays and predictions.csv are in {output}")
    scored = [row for row in rows if row["dice"] != ""]
    if scored:
        means = {key: float(np.mean([row[key] for row in scored])) for key in ("dice", "iou")}
        logger.info(result_line({"split": folder.name, "method": "final"} | means | {"patches": len(scored)}))
    if failed:
        raise DataError(
            f"{len(failed)} of {len(rows)} patches failed ({listed(sorted(failed))}): see the reasons in "
            f"{output / 'predictions.csv'}; the others are done"
        )


def _row(patch: Input, done: "Notes", failed: Failed, output: Path) -> dict[str, Any]:
    """The patch's row of predictions.csv."""
    if patch.name not in failed:
        try:
            with guard(patch.mask or patch.image):
                return {"status": "ok", "reason": ""} | done.rows[patch.name] | _score(patch, output)
        except OF_THE_ITEM as error:
            _fail(patch, error, failed)
    return dict.fromkeys(COLUMNS, "") | {"patch": patch.name, "status": "failed", "reason": str(failed[patch.name])}


def _fail(patch: Input, error: EpsamError, failed: Failed) -> None:
    log_failure(patch.name, error)
    failed[patch.name] = error


class PatchRow(Record):
    """A line of state/patches.jsonl."""

    patch: PlainName
    classifier_probability: Annotated[float, Field(ge=0, le=1)]
    segmented: Literal[0, 1]
    tumour_fraction: Annotated[float, Field(ge=0, le=1)]


class Notes:
    """Rows of finished patches, one JSON object a line; a line that an interruption cut short does not count."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), 1):
                row = self._parse(line, number)
                self.rows[row.patch] = row.model_dump()
            if whole != data:
                os.truncate(path, len(whole))

    def _parse(self, line: bytes, number: int) -> PatchRow:
        try:
            return parse_record(line.decode(), PatchRow)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path}, line {number}: is not the record of a patch ({explain(error)}); delete the "
                "file, and the patches are predicted again"
            ) from None

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Note patches whose files are written."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
        self.rows |= {row["patch"]: row for row in rows}


def _read_batches(inputs: list[Input], size: int, failed: Failed) -> Iterator[Batch]:
    """Patches of one size together, in order, at most `size` of them; those that cannot be read join `failed`."""
    waiting: Batch = []
    for patch in inputs:
        try:
            with guard(patch.image):
                image = read_image(patch.image)
        except OF_THE_ITEM as error:
            _fail(patch, error, failed)
            continue
        if waiting and (len(waiting) == size or waiting[0][1].shape != image.shape):
            yield waiting
            waiting = []
        waiting.append((patch, image))
    if waiting:
        yield waiting


def _predict_guarded(batch: Batch, output: Path, models: ImageSegmenter, failed: Failed) -> list[dict[str, Any]]:
    """Rows of a batch; where it cannot be predicted each patch is tried alone, and the guilty ones join `failed`."""
    try:
        with guard(batch[0][0].image, *(patch.mask for patch, _ in batch)):
            return _predict_batch(
                [patch for patch, _ in batch], np.stack([image for _, image in batch]), output, models
            )
    except OF_THE_ITEM as error:
        if len(batch) > 1:
            return [row for one in batch for row in _predict_guarded([one], output, models, failed)]
        _fail(batch[0][0], error, failed)
        return []


def _predict_batch(
    batch: list[Input], images: np.ndarray, output: Path, models: ImageSegmenter
) -> list[dict[str, Any]]:
    probabilities = models.classify(images, [patch.name for patch in batch])
    chosen = probabilities >= models.config.inference.classifier_probability
    chosen |= np.array([patch.known_positive for patch in batch])
    masks = np.zeros(images.shape[:3], bool)
    if chosen.any():
        names = [patch.name for patch, seen in zip(batch, chosen, strict=True) if seen]
        masks[chosen] = models.masks(images[chosen], names)
    rows = []
    for patch, image, mask, probability, seen in zip(batch, images, masks, probabilities, chosen, strict=True):
        truth = None if patch.mask is None else read_mask(patch.mask)
        write_png(output / "mask" / f"{patch.name}.png", mask)
        write_png(output / "overlay" / f"{patch.name}.png", draw_overlay(image, mask, truth))
        rows.append(
            {
                "patch": patch.name,
                "classifier_probability": round(float(probability), 4),
                "segmented": int(seen),
                "tumour_fraction": round(float(mask.mean()), 4),
            }
        )
    return rows


def _score(patch: Input, output: Path) -> dict[str, float | str]:
    """Dice and IoU of what was predicted; empty where no true mask holds tumour."""
    truth = None if patch.mask is None else read_mask(patch.mask)
    if truth is None or not truth.any():
        return {"dice": "", "iou": ""}
    predicted = read_mask(output / "mask" / f"{patch.name}.png")
    return {"dice": dice(predicted, truth), "iou": iou(predicted, truth)}


def draw_overlay(image: np.ndarray, mask: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """The patch, at least OVERLAY_PX long, with what is predicted and the annotation, if known, above a legend."""
    scale = max(1.0, OVERLAY_PX / max(mask.shape))
    drawn = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    legend = [Entry("predicted", PREDICTION)]
    predicted = resize_mask(mask, drawn.shape[1::-1])
    tint(drawn, predicted, PREDICTION, 0.25)
    if truth is not None:
        outline(drawn, resize_mask(truth, drawn.shape[1::-1]), TRUTH)
        legend.append(Entry("annotation", TRUTH, "line"))
    outline(drawn, predicted, PREDICTION)
    return add_legend(drawn, legend)
