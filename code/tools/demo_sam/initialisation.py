"""Starting weights from which the demo's mask decoder finds its prompts.

From SAM's own random start, the decoder answers "nothing" whatever the prompt for over a thousand steps: the
mask is a product of two small numbers, and no token keeps what it saw. Here signals start at unit size, attention
looks for what is alike, and what it finds is passed on as it is.
"""

import math

import torch
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.modeling.transformer import Attention
from torch import nn

from epsam.runtime.seeds import seed_of
from epsam.sam.demo_model import build_sam_demo


def initial_sam(seed: int) -> Sam:
    """The demo's SAM before training, the same for the same seed."""
    torch.manual_seed(seed_of("demo sam", seed))
    sam = build_sam_demo()
    with torch.no_grad():
        _prepare_decoder(sam.mask_decoder)
        # What a prompt is (kind) shall not drown where it is (position) and what lies there (image).
        for embedding in sam.prompt_encoder.point_embeddings:
            embedding.weight.mul_(0.3)
        sam.prompt_encoder.no_mask_embed.weight.mul_(0.1)
    return sam


def _prepare_decoder(decoder: MaskDecoder) -> None:
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, math.sqrt(2 / module.in_channels))
    for network in decoder.output_hypernetworks_mlps:
        for layer in network.layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    for layer in decoder.transformer.layers:
        _attend_alike(layer.self_attn, sharpness=2.5, gain=1)
        _attend_alike(layer.cross_attn_token_to_image, sharpness=1.5, gain=3)
        _attend_alike(layer.cross_attn_image_to_token, sharpness=1.5, gain=3)
        layer.mlp.lin2.weight.mul_(0.1)
    _attend_alike(decoder.transformer.final_attn_token_to_image, sharpness=1.5, gain=3)


def _attend_alike(attention: Attention, sharpness: float, gain: float) -> None:
    """Equal query and key projections find what is alike; output undoes value, so it is passed on unmixed."""
    attention.q_proj.weight.mul_(sharpness)
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    nn.init.orthogonal_(attention.v_proj.weight)
    attention.out_proj.weight.copy_(gain * attention.v_proj.weight.T)
