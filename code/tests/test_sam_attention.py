"""The encoder's attention against segment_anything's own: equal but for rounding, for each of the models' structures."""

import copy
from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from epsam.sam import attention
from epsam.sam.attention import attend, speed_up
from epsam.sam.checkpoint import build_sam
from epsam.sam.demo_model import build_sam_demo

HEADS = {"vit_b": (3, 64), "vit_l": (4, 64), "vit_h": (2, 80)}
"""A quarter of the heads or fewer, each of the width that the model has."""
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
"""Of embeddings of unit variance, in float32."""


def _random_positions(encoder: ImageEncoderViT) -> ImageEncoderViT:
    """segment_anything starts with relative positions of zero, which would hide them."""
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or name == "pos_embed":
            nn.init.normal_(parameter, std=0.3)
    return encoder.requires_grad_(False).eval()


def _encoder(model: str) -> ImageEncoderViT:
    """A block with windows of 14 and a global one over 19 x 19 positions, so that windows are padded."""
    torch.manual_seed(0)
    if model == "demo":
        return _random_positions(build_sam_demo().image_encoder)
    heads, width = HEADS[model]
    return _random_positions(
        ImageEncoderViT(
            img_size=19 * 16,
            embed_dim=heads * width,
            depth=2,
            num_heads=heads,
            out_chans=32,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(1,),
        )
    )


@pytest.mark.parametrize("model", [*HEADS, "demo"])
@pytest.mark.parametrize("in_blocks", [True, False], ids=["blocks", "at-once"])
def test_embeddings_are_segment_anythings_but_for_rounding(model, in_blocks, monkeypatch):
    monkeypatch.setattr(attention, "attend", partial(_attend, in_blocks))
    monkeypatch.setattr(attention, "MAX_SCORES", 19 * 19 * 100)  # several blocks, the last one smaller
    theirs = _encoder(model)
    ours = copy.deepcopy(theirs)
    speed_up(ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    images = torch.randn(2, 3, theirs.img_size, theirs.img_size)
    with torch.inference_mode():
        exact, found = theirs(images), ours(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, found_rounded = theirs(images), ours(images)
    torch.testing.assert_close(found, exact, **TOLERANCE)
    assert (found_rounded.float() - exact).std() < 1.1 * (rounded.float() - exact).std()


def _attend(in_blocks, module, x):
    return attend(module, x, in_blocks)


@pytest.mark.parametrize("in_blocks", [True, False], ids=["blocks", "at-once"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (40, 30)])
def test_positions_of_another_shape_are_interpolated_as_in_segment_anything(shape, in_blocks):
    module = _encoder("vit_b").blocks[0].attn
    x = torch.randn(2, *shape, 192)
    with torch.inference_mode():
        torch.testing.assert_close(attend(module, x, in_blocks), module(x), **TOLERANCE)


def test_sam_is_built_with_it_and_a_copy_has_weights_of_its_own():
    sam = build_sam("demo")
    first = sam.image_encoder.blocks[0].attn
    assert first.forward.__func__ is attend
    twin = copy.deepcopy(first)
    x = torch.randn(1, 8, 8, 64)
    with torch.inference_mode():
        before = first(x)
        torch.testing.assert_close(twin(x), before)
        nn.init.zeros_(twin.proj.weight)
        torch.testing.assert_close(first(x), before)
        assert not torch.allclose(twin(x), before)
