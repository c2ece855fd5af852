"""Segment Anything: loading, the embedding store, batched decoding, training of its mask decoder."""

from epsam.sam.checkpoint import load_decoder, load_sam
from epsam.sam.decoder import decode_batch, predict_masks
from epsam.sam.postprocessing import components_touching, without_small_regions

__all__ = [
    "components_touching",
    "decode_batch",
    "load_decoder",
    "load_sam",
    "predict_masks",
    "without_small_regions",
]
