"""Trained models at work: on patches, on whole slides, and what comes out for QuPath and ASAP."""
