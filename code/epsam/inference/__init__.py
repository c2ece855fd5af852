"""Trained models at work: on patches, on whole slides, and what comes out for QuPath and ASAP."""

from epsam.inference.run import InferenceSettings, infer

__all__ = ["InferenceSettings", "infer"]
