"""Segment Anything: loading, the embedding store, batched decoding, training of its mask decoder."""

from epsam.sam.checkpoint import load_decoder, load_sam
from epsam.sam.decoding import decode_batch, predict_masks
from epsam.sam.prediction import predict_split
from epsam.sam.tidying import supported_islands, without_small_regions

__all__ = ["decode_batch", "load_decoder", "load_sam", "predict_masks", "predict_split", "supported_islands",
           "without_small_regions"]
