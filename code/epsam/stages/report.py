"""Stage report: one page that shows a run."""

from collections.abc import Sequence
from pathlib import Path

from epsam import report as report_package
from epsam.config.schema import Config
from epsam.report.data_section import data_section
from epsam.report.example_section import example_section
from epsam.report.page import run_section, settings_section
from epsam.report.result_section import result_section
from epsam.report.training_section import training_section
from epsam.runtime.files import write_text
from epsam.runtime.log import logger
from epsam.visualization.page import render
from epsam.workspace import Workspace


def report(config: Config, workspace: Workspace, stages: Sequence[tuple[str, str]]) -> None:
    """Stage: write runs/<name>/report.html out of what `stages` (names and what they do) left on disk.

    Parts that have nothing to show (no true masks, no slides, no curves) say so.
    """
    page = render(
        Path(report_package.__file__).parent / "report.html",
        run=run_section(config, workspace, stages),
        results=result_section(config, workspace),
        examples=example_section(config, workspace),
        training=training_section(config, workspace),
        data=data_section(config, workspace),
        settings=settings_section(config),
    )
    write_text(workspace.report, page)
    logger.info(f"report: {workspace.report} ({len(page) / 2**20:.1f} MB); open it in a browser")
