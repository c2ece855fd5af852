"""Batched decoding gives what segment_anything gives image by image."""

import numpy as np
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from epsam.cam.activation_map import ActivationMap
from epsam.config.schema import Config, Postprocess
from epsam.errors import DataError
from epsam.prompts import NO_BOXES, NO_POINTS, PromptSet, prompt_views
from epsam.runtime.views import apply_view, undo_view
from epsam.sam.decoder import PADDING, decode_batch, predict_masks
from epsam.sam.encoder import encode, to_input
from epsam.segmenter import segment
from tests.sam_factory import CPU, draw_patch, small_sam

PUBLISHED = (1024, 256, 8)
"""Input, width and heads of the decoder of vit_b, vit_l and vit_h."""


@pytest.fixture(scope="module")
def small():
    return small_sam()


@pytest.fixture(scope="module")
def published():
    return small_sam(*PUBLISHED)


def _inputs(sam, size, count=3):
    images = [to_input(draw_patch(str(n), size)[0], sam.image_encoder.img_size) for n in range(count)]
    # The store rounds to float16; the comparison is of decoders, so both sides start from the same embeddings.
    with torch.no_grad():
        embeddings = sam.image_encoder(torch.stack([sam.preprocess(image.float()) for image in images]))
    return images, embeddings


def _prompts(kind, size, counts):
    rng = np.random.default_rng(0)
    scale = np.array(size[::-1], np.float32)
    sets = []
    for count in counts:
        box = np.array([[0.1, 0.2, 0.8, 0.9]], np.float32) * np.tile(scale, 2)
        points = (box[0, :2] + rng.random((count, 2)) * (box[0, 2:] - box[0, :2])).astype(np.float32)
        sets.append(PromptSet(points if kind != "boxes" else NO_POINTS, box if kind != "points" else NO_BOXES))
    return sets


def _own_way(sam, image, prompts, size):
    """Mask logits (H, W) and decoder logits of one image by Sam.forward and SAM's own transforms."""
    frame = ResizeLongestSide(sam.image_encoder.img_size)
    record = {"image": image.float(), "original_size": size}
    if len(prompts.points):
        record["point_coords"] = torch.from_numpy(frame.apply_coords(prompts.points, size)).float()[None]
        record["point_labels"] = torch.ones(1, len(prompts.points))
    if len(prompts.boxes):
        record["boxes"] = torch.from_numpy(frame.apply_boxes(prompts.boxes, size)).float()
    low = sam([record], multimask_output=False)[0]["low_res_logits"]
    return sam.postprocess_masks(low, image.shape[-2:], size)[0, 0], low[0, 0]


def test_views_and_map_are_averaged_in_the_frame_of_the_patch(small):
    """On a patch that is not square: each view's mask turned back, then the map with its weight."""
    size, views = (48, 80), 4
    image = draw_patch("0", size)[0]
    cam = np.zeros(size, np.float32)
    cam[10:30, 20:60] = 0.9
    settings = Config(name="x", prompts={"points": 5}, cam={"percentile": None, "threshold": 0.3, "opening_px": 0})
    patch = prompt_views(ActivationMap(cam, 0.3), size, settings, "a", views)
    with torch.no_grad():
        inputs = [encode(small, [to_input(apply_view(image, view), 64)], CPU).float() for view in range(views)]
        logits = [
            predict_masks(small, inputs[view], [patch[view].prompts], patch[view].cam_mask.shape)[0]
            for view in range(views)
        ]
    turned_back = [undo_view(torch.sigmoid(one).numpy(), view) for view, one in enumerate(logits)]
    expected = (np.mean(turned_back, axis=0) + 2 * np.where(cam > 0, 0.5 + 0.5 * 0.6 / 0.7, 0)) / 3
    found = segment(small, inputs, [patch], ["a"], Postprocess(views=views, cam_weight=2))[0]
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)
    np.testing.assert_array_equal(found.mask, expected > 0.5)


def test_a_patch_without_prompts_is_empty_however_much_the_map_counts(small):
    cam = np.zeros((64, 64), np.float32)
    cam[10:20, 10:20] = 0.9  # smaller than prompts.min_box_px
    settings = Config(name="x", prompts={"kind": "boxes", "min_box_px": 400}, cam={"opening_px": 0})
    patch = prompt_views(ActivationMap(cam, 0.3), (64, 64), settings, "a", 1)
    assert patch[0].cam_mask.any()
    embedding = torch.zeros(1, small.prompt_encoder.embed_dim, *small.prompt_encoder.image_embedding_size)
    assert not segment(small, [embedding], [patch], ["a"], Postprocess(cam_weight=5))[0].mask.any()


@pytest.mark.parametrize("kind", ["points", "boxes", "both"])
@pytest.mark.parametrize(
    ("model", "size"), [("small", (48, 48)), ("small", (40, 64)), ("small", (512, 300)), ("published", (512, 300))]
)
def test_a_batch_equals_sam_image_by_image(request, model, kind, size):
    sam, counts = request.getfixturevalue(model), (5, 5, 3) if model == "small" else (5, 3)
    images, embeddings = _inputs(sam, size, len(counts))
    prompts = _prompts(kind, size, counts)
    logits = predict_masks(sam, embeddings, prompts, size)
    assert logits.shape == (len(counts), *size)
    expected = torch.stack([_own_way(sam, *pair, size)[0] for pair in zip(images, prompts, strict=True)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1


def test_low_precision_places_prompts_as_exactly_as_float32_does(small):
    _, embeddings = _inputs(small, (64, 64))
    prompts = _prompts("both", (64, 64), (4, 2, 4))
    seen = []
    hook = small.mask_decoder.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    exact = predict_masks(small, embeddings, prompts, (64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        low = predict_masks(small, embeddings, prompts, (64, 64))
    hook.remove()
    half = len(seen) // 2
    for one, other in zip(seen[:half], seen[half:], strict=True):
        for name in ("image_pe", "sparse_prompt_embeddings"):
            assert torch.equal(one[name], other[name])
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=0.05 * float(exact.std()), rtol=0.05)


def test_padding_does_not_move_a_mask(small):
    images, embeddings = _inputs(small, (64, 64), 2)
    prompts = _prompts("points", (64, 64), (7, 3))
    scale = small.image_encoder.img_size / 64
    points, labels = torch.full((2, 7, 2), 9.0), torch.full((2, 7), PADDING)
    points[0], labels[0] = torch.from_numpy(prompts[0].points) * scale, 1
    points[1, [0, 4, 6]], labels[1, [0, 4, 6]] = torch.from_numpy(prompts[1].points) * scale, 1
    logits = decode_batch(small, embeddings, points, labels)
    assert logits.shape == (2, *(4 * side for side in embeddings.shape[-2:]))
    expected = torch.stack([_own_way(small, *pair, (64, 64))[1] for pair in zip(images, prompts, strict=True)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_batch_is_the_same_in_any_order(small):
    _, embeddings = _inputs(small, (64, 64))
    prompts = _prompts("both", (64, 64), (4, 2, 4))
    logits = predict_masks(small, embeddings, prompts, (64, 64))
    turned = predict_masks(small, embeddings.flip(0), prompts[::-1], (64, 64))
    torch.testing.assert_close(logits, turned.flip(0), atol=1e-5, rtol=1e-5)


def test_several_boxes_of_a_patch_are_united(small):
    _, embeddings = _inputs(small, (64, 64), 2)
    boxes = np.array([[2, 2, 20, 20], [30, 30, 60, 50]], np.float32)
    points = np.array([[10, 10], [40, 40], [25, 5]], np.float32)  # the last lies in no box
    both = predict_masks(small, embeddings, [PromptSet(points, boxes), PromptSet(NO_POINTS, boxes[:1])], (64, 64))
    parts = [
        predict_masks(small, embeddings[:1], [PromptSet(points[i : i + 1], boxes[i : i + 1])], (64, 64))[0]
        for i in (0, 1)
    ]
    torch.testing.assert_close(both[0], torch.maximum(*parts), atol=1e-5, rtol=1e-5)


def test_a_patch_without_prompts_is_empty_and_leaves_the_others_alone(small):
    _, embeddings = _inputs(small, (64, 64))
    prompts = _prompts("points", (64, 64), (4, 4, 4))
    alone = predict_masks(small, embeddings, prompts, (64, 64))
    logits = predict_masks(small, embeddings, [prompts[0], PromptSet(NO_POINTS, NO_BOXES), prompts[2]], (64, 64))
    assert (logits[1] < 0).all()
    torch.testing.assert_close(logits[[0, 2]], alone[[0, 2]], atol=1e-5, rtol=1e-5)
    assert (predict_masks(small, embeddings[:1], [PromptSet(NO_POINTS, NO_BOXES)], (64, 64)) < 0).all()
    with pytest.raises(DataError, match="1 of 1 images have no prompt"):
        decode_batch(small, embeddings[:1], torch.zeros(1, 2, 2), torch.full((1, 2), PADDING))


def test_gradients_reach_the_decoder_alone():
    sam = small_sam().requires_grad_(True)
    _, embeddings = _inputs(sam, (64, 64))
    prompts = _prompts("both", (64, 64), (4, 2, 4))
    predict_masks(sam, embeddings, prompts, (64, 64)).sum().backward()
    reached = {name.split(".")[0] for name, value in sam.named_parameters() if value.grad is not None}
    assert reached == {"mask_decoder"}


def test_encoding_in_one_batch_or_in_several_is_the_same(small):
    images = [to_input(draw_patch(str(n), size)[0], 64) for n, size in enumerate([(64, 64), (64, 40), (30, 90)])]
    together = encode(small, images, CPU)
    assert together.shape == (3, 32, 4, 4)
    assert together.dtype == torch.float16
    one_by_one = torch.cat([encode(small, [image], CPU) for image in images])
    torch.testing.assert_close(together, one_by_one, atol=2e-3, rtol=0)
