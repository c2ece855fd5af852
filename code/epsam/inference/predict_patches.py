"""Patches in, their masks and overlays out; with true masks, the figures of the method as well."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from epsam.errors import DataError, EpsamError
from epsam.evaluation.metrics import dice, iou
from epsam.inference.output import OutputFolder
from epsam.inference.pages.index import write_patch_index
from epsam.inference.patch_folder import Patch
from epsam.inference.patch_rows import PatchRows
from epsam.inference.segmenter import Segmenter
from epsam.inference.tile_prediction import predict_picture
from epsam.results import result_line
from epsam.runtime.failures import OF_THE_ITEM, guard, log_failure
from epsam.runtime.files import read_image, read_mask, sha256, write_csv, write_png
from epsam.runtime.log import logger, progress
from epsam.runtime.text import listed
from epsam.sam.postprocessing import without_small_regions
from epsam.visualization.drawing import Entry, add_legend, outline, resize_mask, tint
from epsam.visualization.palette import PREDICTION, TRUTH

COLUMNS = ["patch", "status", "reason", "classifier_probability", "segmented", "tumour_fraction", "dice", "iou"]


OVERLAY_PX = 512
"""Least longer side of an overlay; smaller patches are enlarged."""


Batch = list[tuple[Patch, np.ndarray]]
"""Patches with their images, RGB uint8 (H, W, 3) of one size."""


Failed = dict[str, EpsamError]
"""Why, by the patch's name."""


def predict_patches(folder: Path, patches: list[Patch], outputs: OutputFolder, models: Segmenter) -> None:
    """Write mask/<name>.png, overlay/<name>.png, predictions.csv and index.html to `outputs`; log figures if masks exist.

    Patches that are larger than those of the training are predicted tile by tile, smaller ones fail.
    Goes on after the patches that state/patches.jsonl names with the content they have, and whose mask and overlay are
    there. Figures are means over the patches whose true mask holds tumour, as in the evaluation of a run.
    """
    output = outputs.path
    done = PatchRows(output / "state" / "patches.jsonl")
    failed: Failed = {}
    left = [patch for patch in patches if not _is_done(patch, done, output)]
    outputs.claim(["predictions.csv", "index.html"], "")
    outputs.claim([f"{patch.name}.png" for patch in left], "mask", "overlay")
    with progress(total=len(patches), initial=len(patches) - len(left), desc=folder.name, unit="patch") as bar:
        for batch in _read_batches(left, models, failed):
            done.add(_predict_guarded(batch, output, models, failed))
            bar.update(len(batch))
    rows = [_row(patch, done, failed, output) for patch in patches]
    write_csv(output / "predictions.csv", rows, COLUMNS)
    write_patch_index(output, rows)
    logger.info(f"{len(rows) - len(failed)} patches: masks, overlays, predictions.csv and index.html are in {output}")
    scored = [row for row in rows if row["dice"] != ""]
    if scored:
        means = {key: float(np.mean([row[key] for row in scored])) for key in ("dice", "iou")}
        logger.info(result_line({"split": folder.name, "method": "final"} | means | {"patches": len(scored)}))
    if failed:
        raise DataError(
            f"{len(failed)} of {len(rows)} patches failed ({listed(sorted(failed))}): see the reasons in "
            f"{output / 'predictions.csv'}; the others are done"
        )


def _is_done(patch: Patch, done: PatchRows, output: Path) -> bool:
    row = done.rows.get(patch.name)
    if row is None or not all((output / kind / f"{patch.name}.png").is_file() for kind in ("mask", "overlay")):
        return False
    if row["image"] == _hash(patch.image):
        return True
    logger.warning(f"{patch.image} is not the picture any more that was predicted; it is predicted again")
    return False


def _hash(path: Path) -> str:
    """SHA-256 of a patch; empty where it cannot be read: reading it says why."""
    try:
        return sha256(path)
    except OSError:
        return ""


def _row(patch: Patch, done: PatchRows, failed: Failed, output: Path) -> dict[str, Any]:
    """The patch's row of predictions.csv."""
    if patch.name not in failed:
        try:
            known = {key: value for key, value in done.rows[patch.name].items() if key in COLUMNS}
            with guard(patch.mask or patch.image):
                return {"status": "ok", "reason": ""} | known | _score(patch, output)
        except OF_THE_ITEM as error:
            _fail(patch, error, failed)
    return dict.fromkeys(COLUMNS, "") | {"patch": patch.name, "status": "failed", "reason": str(failed[patch.name])}


def _fail(patch: Patch, error: EpsamError, failed: Failed) -> None:
    log_failure(patch.name, error)
    failed[patch.name] = error


def _read_batches(patches: list[Patch], models: Segmenter, failed: Failed) -> Iterator[Batch]:
    """Patches in order, as many together as the models take; pictures of another size come alone.

    Those that cannot be read join `failed`.
    """
    waiting: Batch = []
    for patch in patches:
        try:
            with guard(patch.image):
                image = read_image(patch.image)
        except OF_THE_ITEM as error:
            _fail(patch, error, failed)
            continue
        if not _is_patch(image, models):
            yield [(patch, image)]
            continue
        waiting.append((patch, image))
        if len(waiting) == models.hardware.decoder_batch:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _is_patch(image: np.ndarray, models: Segmenter) -> bool:
    return image.shape[:2] == (models.config.patches.size_px,) * 2


def _predict_guarded(batch: Batch, output: Path, models: Segmenter, failed: Failed) -> list[dict[str, Any]]:
    """Rows of a batch; where it cannot be predicted each patch is tried alone, and the guilty ones join `failed`."""
    try:
        with guard(batch[0][0].image, *(patch.mask for patch, _ in batch)):
            if _is_patch(batch[0][1], models):
                return _predict_batch(batch, output, models)
            return [_predict_picture(*batch[0], output, models)]
    except OF_THE_ITEM as error:
        if len(batch) > 1:
            return [row for one in batch for row in _predict_guarded([one], output, models, failed)]
        _fail(batch[0][0], error, failed)
        return []


def _predict_batch(batch: Batch, output: Path, models: Segmenter) -> list[dict[str, Any]]:
    images = np.stack([image for _, image in batch])
    probabilities = models.classify(images, [patch.name for patch, _ in batch])
    chosen = probabilities >= models.config.inference.classifier_probability
    chosen |= np.array([patch.known_positive for patch, _ in batch])
    masks = np.zeros(images.shape[:3], bool)
    if chosen.any():
        names = [patch.name for (patch, _), seen in zip(batch, chosen, strict=True) if seen]
        masks[chosen] = models.masks(images[chosen], names)
    return [
        _write(patch, image, mask, float(probability) if models.uses_classifier else None, bool(seen), output)
        for (patch, image), mask, probability, seen in zip(batch, masks, probabilities, chosen, strict=True)
    ]


def _predict_picture(patch: Patch, image: np.ndarray, output: Path, models: Segmenter) -> dict[str, Any]:
    picture = predict_picture(image, patch.name, models)
    size = models.config.patches.size_px
    logger.info(f"{patch.name}: {image.shape[1]} x {image.shape[0]} px, predicted in tiles of {size} x {size} px")
    mask = picture.probability >= models.config.inference.threshold * 255
    mask = without_small_regions(mask, models.config.postprocess.min_region_px)
    probability = picture.classifier_probability if models.uses_classifier else None
    return _write(patch, image, mask, probability, picture.segmented, output)


def _write(
    patch: Patch, image: np.ndarray, mask: np.ndarray, probability: float | None, segmented: bool, output: Path
) -> dict[str, Any]:
    """Write mask and overlay of a patch; gives its row of state/patches.jsonl."""
    truth = None if patch.mask is None else read_mask(patch.mask)
    write_png(output / "mask" / f"{patch.name}.png", mask)
    write_png(output / "overlay" / f"{patch.name}.png", draw_overlay(image, mask, truth))
    return {
        "patch": patch.name,
        "image": _hash(patch.image),
        "classifier_probability": None if probability is None else round(probability, 4),
        "segmented": int(segmented),
        "tumour_fraction": round(float(mask.mean()), 4),
    }


def _score(patch: Patch, output: Path) -> dict[str, float | str]:
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
