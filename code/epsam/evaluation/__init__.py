"""Figures on the test split, and the page that shows a run."""
