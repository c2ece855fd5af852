"""Stage report: one page that shows a run."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from epsam.config.schema import Config
from epsam.report.data_section import data_section
from epsam.report.example_section import example_section
from epsam.report.page import _run_section, _settings_section
from epsam.report.result_section import result_section
from epsam.report.training_section import training_section
from epsam.runtime.device import Hardware
from epsam.runtime.files import write_text
from epsam.runtime.log import logger
from epsam.workspace import Workspace


def report(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: write runs/<name>/report.html out of what the stages before left on disk.

    Parts that have nothing to show (no true masks, no slides, no curves) say so.
    """
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    page = template.render(
        run=_run_section(config, workspace),
        results=result_section(config, workspace),
        examples=example_section(config, workspace),
        training=training_section(config, workspace),
        data=data_section(config, workspace),
        settings=_settings_section(config),
    )
    write_text(workspace.report, page)
    logger.info(f"report: {workspace.report} ({len(page) / 2**20:.1f} MB); open it in a browser")
