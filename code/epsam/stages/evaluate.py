"""Stage evaluate: all methods side by side on the test split."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from epsam.cam.mask import cam_mask
from epsam.classifier.building import load_classifier
from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation import metrics
from epsam.evaluation.colour import choose_colour
from epsam.evaluation.comparison import run_warnings
from epsam.evaluation.methods import (
    Figures,
    Method,
    figures_csv,
    final_method,
    methods_of,
    predictions,
    read_figures,
    write_figures,
)
from epsam.evaluation.slides import comparable_slides, compare_slides, log_slides, slides_row, write_slide_figures
from epsam.evaluation.table import cam_curve, log_table, map_figures, result_row
from epsam.inference.test_slides import predict_test_slides
from epsam.patches.patch import Patch, patches_for_classifier, patches_for_sam
from epsam.results import Value, record_results
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_image, read_mask, write_png
from epsam.runtime.log import logger, progress
from epsam.runtime.ranks import ALONE
from epsam.sam.samples import patch_size
from epsam.sam.session import SamSession
from epsam.sam.training import train_supervised
from epsam.segmenter import ImageSegmenter, segment_stored
from epsam.student.network import load_student
from epsam.student.segmenter import StudentSegmenter
from epsam.student.training import train_student
from epsam.workspace import Workspace


def evaluate(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: predict the test split with every method, compare with the true masks, record and log the table.

    Two sets of figures. On patches that hold tumour, as published: each is predicted whatever the classifier says.
    On all patches (`all_...`), as a slide is predicted: one that the classifier gives less than
    `inference.classifier_probability` is predicted empty, tumour or not; a normal one above it goes the same way
    as the others. Without true masks nothing is measured, with a warning. Masks predicted for the test split and
    figures patch by patch lie in runs/<name>/state/predictions/; a second call continues after the last complete method.
    """
    known = [patch for patch in patches_for_sam(workspace, "test") if patch.has_mask]
    _warn_of_missing_masks(workspace, known)
    if not known:
        hardware.ranks.decide(lambda: record_results(workspace, "evaluate", []))
        return
    session = SamSession(config, workspace, hardware)
    if config.evaluate.supervised:
        train_supervised(session)
        if config.student.enabled:
            true = {split: workspace.split(split) / "mask" for split in ("train", "val")}
            path = workspace.supervised_student
            train_student(config, workspace, hardware, "student_supervised", true, path, on_true_masks=True)
    methods = methods_of(config, workspace)
    negatives = [patch for patch in patches_for_classifier(workspace, "test") if patch.label == 0]
    patches = [*known, *negatives]
    todo = hardware.ranks.decide(lambda: [m for m in methods if not _is_measured(workspace, m, patches)])
    if todo:
        _measure(session, todo, known, negatives)
    if hardware.ranks.is_first:
        _record(session, methods, known)


def _record(session: SamSession, methods: Sequence[Method], known: Sequence[Patch]) -> None:
    """Record and log the table."""
    config, workspace = session.config, session.workspace
    hardware = dataclasses.replace(session.hardware, ranks=ALONE)  # of several processes the first alone does this
    rows = [result_row(config, method.name, read_figures(figures_csv(workspace, method.name))) for method in methods]
    next(row for row in rows if row["method"] == "cam").update(map_figures(config, cam_curve(session, known)))
    slides = _evaluate_slides(config, workspace, hardware) if config.evaluate.slides else []
    record_results(workspace, "evaluate", rows + slides)
    log_table(methods, rows)
    for row in slides:
        log_slides(row)
    for warning in run_warnings(config, workspace):
        logger.warning(f"evaluate: {warning.what}: {warning.advice}")


def _evaluate_slides(config: Config, workspace: Workspace, hardware: Hardware) -> list[dict[str, Value]]:
    """Predict the test slides whole; the row of the table, none where no slide is annotated."""
    records = comparable_slides(config, workspace)
    if not records:
        logger.warning("evaluate: no test slide is known to be annotated in full or without tumour; none is predicted")
        return []
    predicted = predict_test_slides(config, workspace, hardware, [record.path for record in records.values()])
    records = {name: record for name, record in records.items() if name in predicted}
    figures = compare_slides(config, workspace, records, workspace.test_slides)
    write_slide_figures(workspace, figures)
    return [slides_row(config, final_method(config, workspace), figures)] if figures else []


def _warn_of_missing_masks(workspace: Workspace, known: Sequence[Patch]) -> None:
    folder, positives = workspace.split("test") / "mask", patches_for_sam(workspace, "test")
    if not known:
        found = any(folder.glob("*.png"))
        why = "the masks there match no patch by name" if found else "there are no masks"
        logger.warning(f"evaluate: {folder}: {why}; nothing is measured. A mask has the name of its patch")
    elif len(known) < len(positives):
        logger.warning(
            f"evaluate: {len(positives) - len(known)} of {len(positives)} test patches with tumour have no "
            f"mask in {folder}; they are left out"
        )


def _is_measured(workspace: Workspace, method: Method, patches: Sequence[Patch]) -> bool:
    path = figures_csv(workspace, method.name)
    return path.is_file() and read_figures(path).names == [patch.name for patch in patches]


def _measure(
    session: SamSession, methods: Sequence[Method], known: Sequence[Patch], negatives: Sequence[Patch]
) -> None:
    """Predict the patches with each method and keep masks and figures; several processes share the patches."""
    config, workspace, hardware, ranks = session.config, session.workspace, session.hardware, session.hardware.ranks
    classifier = load_classifier(config.classifier, workspace.classifier, hardware.device)
    segmenter = ImageSegmenter(classifier, session.sam, config, hardware)
    patches = [*known, *negatives]
    probabilities = _classify(segmenter, patches)
    threshold = config.inference.classifier_probability
    false_positives = [patch for patch in negatives if probabilities[patch.name] >= threshold]
    logger.info(
        f"evaluate: {len(known)} test patches with tumour, {len(negatives)} normal ones, of which the "
        f"classifier takes {len(false_positives)} for tumour"
    )
    simple = _simple_methods(workspace, methods)
    areas = [math.prod(patch_size(patch)) for patch in patches]
    for method in methods:
        overlaps, found = {patch.name: (0, 0, 0) for patch in negatives}, {}
        if method.name in simple:
            masks = _simple_masks(simple[method.name], ranks.part([*known, *false_positives]))
        elif method.student:
            network = load_student(config.classifier, method.student, hardware.device)
            student = StudentSegmenter(network, config, hardware)
            share = ranks.part_of_batches(patches, hardware.classifier_batch)
            masks = _segmented(student.masks, share, hardware.classifier_batch, method.name)
        else:
            masks = _masks(session, segmenter, method, known, false_positives)
        for patch, mask in masks:
            write_png(predictions(workspace, method.name) / f"{patch.name}.png", mask)
            found[patch.name] = _overlap(patch, mask)
        for share_of_overlaps in ranks.gather(found):
            overlaps |= share_of_overlaps
        figures = Figures(
            names=[patch.name for patch in patches],
            labels=np.array([patch.label for patch in patches]),
            probabilities=np.array([1.0 if method.student else probabilities[patch.name] for patch in patches]),
            areas=np.array(areas),
            overlaps=np.array([overlaps[patch.name] for patch in patches]),
        )
        if ranks.is_first:
            write_figures(figures_csv(workspace, method.name), figures)


def _simple_methods(workspace: Workspace, methods: Sequence[Method]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Methods without a network, by name: RGB uint8 (H, W, 3) -> bool (H, W)."""
    simple: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ones": lambda image: np.ones(image.shape[:2], bool)}
    if any(method.name == "colour" for method in methods):
        colour = choose_colour(patches_for_classifier(workspace, "val"))
        logger.info(f"evaluate: colour threshold: {colour} (chosen by the labels of the val patches)")
        simple["colour"] = colour.mask
    return simple


def _simple_masks(
    predict: Callable[[np.ndarray], np.ndarray], patches: Sequence[Patch]
) -> Iterator[tuple[Patch, np.ndarray]]:
    for patch in patches:
        yield patch, predict(read_image(patch.path))


def _classify(segmenter: ImageSegmenter, patches: Sequence[Patch]) -> dict[str, float]:
    """Probability of tumour of each patch, by name."""
    step, ranks = segmenter.hardware.classifier_batch, segmenter.hardware.ranks
    probabilities: dict[str, float] = {}
    patches = ranks.part_of_batches(patches, step)
    with progress(total=len(patches), desc="classify test", unit="patch") as bar:
        for start in range(0, len(patches), step):
            batch = patches[start : start + step]
            images = np.stack([read_image(patch.path) for patch in batch])
            names = [patch.name for patch in batch]
            probabilities |= dict(zip(names, segmenter.classify(images, names).tolist(), strict=True))
            bar.update(len(batch))
    return {name: probability for part in ranks.gather(probabilities) for name, probability in part.items()}


def _masks(
    session: SamSession,
    segmenter: ImageSegmenter,
    method: Method,
    known: Sequence[Patch],
    false_positives: Sequence[Patch],
) -> Iterator[tuple[Patch, np.ndarray]]:
    """Predicted masks (H, W) bool of the patches with tumour and of the classifier's false positives."""
    session.use_decoder(method.decoder)
    names = {patch.name for patch in known}
    examples = [example for example in session.examples("test") if example.patch.name in names]
    step, ranks = session.hardware.decoder_batch, session.hardware.ranks
    if method.name == "cam":
        for example in ranks.part(examples):
            yield example.patch, cam_mask(example.cam, session.config.cam, patch_size(example.patch))
    else:
        for sample, mask in segment_stored(session, "test", examples, ranks=ranks):
            yield sample.example.patch, mask
    predict = segmenter.cam_masks if method.name == "cam" else segmenter.masks
    share = ranks.part_of_batches(false_positives, step)
    yield from _segmented(predict, share, step, f"{method.name}: false positives")


def _segmented(
    predict: Callable[[np.ndarray, list[str]], Iterable[np.ndarray]], patches: Sequence[Patch], step: int, what: str
) -> Iterator[tuple[Patch, np.ndarray]]:
    """Patches with the masks that `predict` gives for images and names, at most `step` at a time."""
    with progress(total=len(patches), desc=what, unit="patch") as bar:
        for batch in _batches_of_one_size(patches, step):
            images = np.stack([image for _, image in batch])
            masks = predict(images, [patch.name for patch, _ in batch])
            yield from ((patch, mask) for (patch, _), mask in zip(batch, masks, strict=True))
            bar.update(len(batch))


def _batches_of_one_size(patches: Sequence[Patch], count: int) -> Iterator[list[tuple[Patch, np.ndarray]]]:
    """Patches with their images, at most `count` at a time."""
    batch: list[tuple[Patch, np.ndarray]] = []
    for patch in patches:
        image = read_image(patch.path)
        if batch and (len(batch) == count or batch[0][1].shape != image.shape):
            yield batch
            batch = []
        batch.append((patch, image))
    if batch:
        yield batch


def _overlap(patch: Patch, mask: np.ndarray) -> tuple[int, int, int]:
    """Overlap of a predicted mask with the true one, which is empty for a normal patch."""
    if patch.label == 0:
        return 0, int(mask.sum()), 0
    try:
        return metrics.overlap(mask, read_mask(patch.mask))
    except DataError as error:
        raise DataError(f"{patch.mask}: {error}") from None
