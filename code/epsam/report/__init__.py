"""report.html: one page that shows a run."""
