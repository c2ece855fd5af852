"""SAM's prompt encoder and mask decoder over batches: many patches with their prompts in one call."""

from collections.abc import Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from epsam.errors import DataError
from epsam.prompts import PromptSet

PADDING = -1
"""Label of a point that only fills up its row."""


EMPTY_LOGIT = -100.0
"""Logit of all pixels of a patch without prompts: predicted empty."""


def decode_batch(
    sam: Sam,
    embeddings: torch.Tensor,
    points: torch.Tensor,
    labels: torch.Tensor,
    boxes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Single-mask logits of N prompted images, each equal to what `Sam.forward` gives for it alone.

    `embeddings` (N, C, h, w) float; `points` (N, K, 2) as (x, y) in SAM's input frame; `labels` (N, K): 1 tumour,
    0 background, -1 padding; `boxes` (N, 4) x0 y0 x1 y1 in SAM's input frame, rows of NaN for none. Returns
    (N, 4h, 4w) float logits at the decoder's resolution. Rows are grouped by their number of points, because SAM
    has no padding of its own: its "not a point" token moves the mask. Gradients reach the decoder alone. Under autocast
    the decoder computes in less than float32, prompts and logits stay in it.
    Raises DataError for a row without any prompt.
    """
    valid = labels != PADDING
    boxed = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    if boxes is not None:
        boxed = ~boxes.isnan().any(1)
    kinds = valid.sum(1) * 2 + boxed
    if (kinds == 0).any():
        raise DataError(f"{int((kinds == 0).sum())} of {len(kinds)} images have no prompt; SAM cannot decode them")
    groups = kinds.unique().tolist()
    logits = embeddings.new_empty(len(embeddings), *(4 * side for side in embeddings.shape[-2:]))
    for kind in groups:
        rows = (kinds == kind).nonzero()[:, 0]
        chosen, count = valid[rows], kind // 2
        given = None
        if count:
            given = (points[rows][chosen].view(-1, count, 2), labels[rows][chosen].view(-1, count))
        given_boxes = boxes[rows] if boxes is not None and kind % 2 else None
        if len(groups) == 1:
            return _decode(sam, embeddings, given, given_boxes)
        logits = logits.index_copy(0, rows, _decode(sam, embeddings[rows], given, given_boxes))
    return logits


def _decode(
    sam: Sam,
    embeddings: torch.Tensor,
    points: tuple[torch.Tensor, torch.Tensor] | None,
    boxes: torch.Tensor | None,
) -> torch.Tensor:
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):  # 8 bits place no point
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        position = sam.prompt_encoder.get_dense_pe()
        # The decoder repeats one image for all prompts and adds the dense prompt. A blank image, with the real
        # images in place of the dense prompt, makes it take one image per prompt.
        blank = embeddings.new_zeros(1, embeddings.shape[1], 1, 1)
        dense = dense + embeddings
    masks, _ = sam.mask_decoder(
        image_embeddings=blank,
        image_pe=position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return masks[:, 0].float()


def predict_masks(
    sam: Sam, embeddings: torch.Tensor, prompt_sets: Sequence[PromptSet], size: tuple[int, int]
) -> torch.Tensor:
    """Mask logits (N, H, W) at patch size; above 0 is tumour.

    `embeddings` (N, C, h, w) float; `prompt_sets` N of them in patch pixels; `size` (H, W) of the patches. Several
    boxes of one patch are decoded one by one, each with the points inside it, and united (maximum of the logits).
    A patch without prompts gets EMPTY_LOGIT everywhere.
    """
    frame = ResizeLongestSide(sam.image_encoder.img_size)
    rows = [(owner, points, box) for owner, prompts in enumerate(prompt_sets) for points, box in _rows(prompts)]
    full = embeddings.new_full((len(prompt_sets), *size), EMPTY_LOGIT)
    if not rows:
        return full
    owners = [owner for owner, _, _ in rows]
    points, labels, boxes = (tensor.to(embeddings.device) for tensor in _pad(rows))
    everyone_once = owners == list(range(len(prompt_sets)))
    logits = decode_batch(
        sam,
        embeddings if everyone_once else embeddings[owners],
        frame.apply_coords_torch(points, size),
        labels,
        frame.apply_boxes_torch(boxes, size),
    )
    logits = sam.postprocess_masks(logits[:, None], frame.get_preprocess_shape(*size, frame.target_length), size)[:, 0]
    if everyone_once:
        return logits
    index = torch.tensor(owners, device=logits.device)[:, None, None].expand_as(logits)
    return full.scatter_reduce(0, index, logits, "amax", include_self=False)


def _rows(prompts: PromptSet) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The decoder calls of one patch: points and box of each."""
    if not len(prompts.boxes):
        return [] if prompts.is_empty else [(prompts.points, None)]
    rows = []
    for box in prompts.boxes:
        inside = ((prompts.points >= box[:2]) & (prompts.points < box[2:])).all(1)
        rows.append((prompts.points[inside], box))
    return rows


def _pad(rows: list[tuple[int, np.ndarray, np.ndarray | None]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    most = max(len(points) for _, points, _ in rows)
    all_points = np.zeros((len(rows), most, 2), np.float32)
    labels = np.full((len(rows), most), PADDING, np.int64)
    boxes = np.full((len(rows), 4), np.nan, np.float32)
    for row, (_, points, box) in enumerate(rows):
        all_points[row, : len(points)] = points
        labels[row, : len(points)] = 1
        if box is not None:
            boxes[row] = box
    return torch.from_numpy(all_points), torch.from_numpy(labels), torch.from_numpy(boxes)
