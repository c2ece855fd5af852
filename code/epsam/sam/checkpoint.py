"""SAM and its decoders from files: where the weights come from and whether they fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import nn

from epsam.errors import CheckpointError
from epsam.runtime.checkpoints import load_tensors, load_weights, mismatch
from epsam.runtime.downloads import WEIGHTS, fetch
from epsam.runtime.files import sha256
from epsam.runtime.model_file import WeightsSource
from epsam.runtime.sidecar import read_metadata
from epsam.runtime.weights_format import unwrap
from epsam.sam.attention import speed_up
from epsam.sam.demo_model import build_sam_demo
from epsam.sam.encoder import encoder_hash
from epsam.shipped import find_demo_sam

ModelType = Literal["vit_b", "vit_l", "vit_h", "demo"]

DECODER = "mask_decoder."


def load_sam(
    model_type: ModelType,
    checkpoint: WeightsSource | None,
    folder: Path = Path("checkpoints"),
    device: torch.device | str = "cpu",
) -> Sam:
    """A Segment Anything model with its weights, in evaluation mode, no parameter requiring a gradient.

    `checkpoint` is a file of SAM's architecture (also MedSAM's or PathoSAM's, also with the weights wrapped
    under a key such as `model_state`); without it the published weights are looked for in `folder` and fetched
    into it. Raises CheckpointError when they cannot be had, are damaged or belong to another model type.
    """
    path = checkpoint if checkpoint is not None else find_weights(model_type, folder)
    sam = build_sam(model_type)
    weights = unwrap(load_tensors(path))
    _check_fit(path, weights, sam.state_dict(), f"SAM {model_type}")
    sam.load_state_dict(weights)
    return sam.requires_grad_(False).eval().to(device)


def build_sam(model_type: ModelType) -> Sam:
    """The model with random weights, in evaluation mode."""
    sam = build_sam_demo().eval() if model_type == "demo" else sam_model_registry[model_type]()
    speed_up(sam.image_encoder)
    sam.mask_decoder.transformer.register_forward_pre_hook(_channels_last_input)
    sam.mask_decoder.output_upscaling.register_forward_pre_hook(_contiguous_input)
    return sam


def _channels_last_input(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The transformer takes picture and places (N, C, h, w) for rows of channels, which they are in this layout alone."""
    *pictures, tokens = inputs
    return *(picture.contiguous(memory_format=torch.channels_last) for picture in pictures), tokens


def _contiguous_input(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The decoder upscales a transposed view; its layers then mix memory layouts, on which GELU is 7 times slower."""
    return (inputs[0].contiguous(),)


def find_weights(model_type: ModelType, folder: Path) -> Path:
    """The weights of `model_type` in `folder`; published ones are fetched into it when they are not there.

    Raises CheckpointError when they cannot be had, or the file there does not have the published hash.
    """
    if model_type != "demo":
        path = fetch(model_type, Path(folder))
        if sha256(path) != WEIGHTS[model_type].sha256:
            raise CheckpointError(
                f"{path}: the SHA-256 is not that of the published {model_type}; delete the file to "
                "fetch it again, or name it in sam.checkpoint if it is meant to be another SAM"
            )
        return path
    path = find_demo_sam(folder)
    if not path.is_file():
        raise CheckpointError(
            f"{Path(folder) / path.name}: the demo's SAM is missing; it is part of the repository, so bring it back with "
            f"`git checkout checkpoints/{path.name}`, or install epsam again"
        )
    return path


def load_decoder(sam: Sam, path: WeightsSource) -> Sam:
    """Put a trained mask decoder into `sam`, in place, and return `sam`.

    The file holds `mask_decoder.*`, perhaps after `module.`. Raises CheckpointError when it is missing, damaged
    or the decoder of another SAM: of another shape, or trained on what another encoder gives.
    """
    weights = load_weights(path)
    _check_fit(path, weights, decoder_weights(sam), "this SAM's mask decoder")
    trained_on = read_metadata(path).get("encoder")
    if trained_on and trained_on != (here := encoder_hash(sam)):
        raise CheckpointError(
            f"{path} was trained on another SAM (encoder {trained_on[:12]} there, {here[:12]} here); "
            "give the SAM weights it was trained with (SAM_CHECKPOINT, sam.checkpoint)"
        )
    sam.load_state_dict(weights, strict=False)
    return sam


def decoder_weights(sam: Sam) -> dict[str, torch.Tensor]:
    """State dict of the mask decoder, keys as in the whole model (`mask_decoder.*`), a copy on the CPU."""
    return {DECODER + name: tensor.detach().cpu().clone() for name, tensor in sam.mask_decoder.state_dict().items()}


def _check_fit(path: WeightsSource, weights: Mapping, expected: Mapping[str, torch.Tensor], model: str) -> None:
    if differences := mismatch(weights, expected):
        raise CheckpointError(
            f"{path} does not fit {model}: {differences}. Set sam.model_type (vit_b, vit_l, vit_h, demo) to the one "
            "these weights were made for"
        )
