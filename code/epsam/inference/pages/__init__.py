"""HTML pages over predictions: index.html, and for each slide a page whose picture zooms."""
