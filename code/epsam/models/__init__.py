"""Trained models: where their parts lie, by the name of a run or in one file."""
