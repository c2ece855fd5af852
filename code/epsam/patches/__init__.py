"""From slides to patches: which slides, which windows, where they are written."""
