"""Stage report: one self-contained page that shows what was run and how it went."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from epsam import __version__
from epsam.config import Config
from epsam.environment import read_environment
from epsam.evaluation.data_section import data_section
from epsam.evaluation.example_section import example_section
from epsam.evaluation.result_section import headline, result_section, tiles
from epsam.evaluation.training_section import training_section
from epsam.pipeline import STAGES
from epsam.runtime.device import Hardware
from epsam.runtime.files import write_text
from epsam.runtime.log import logger
from epsam.runtime.settings import flatten
from epsam.runtime.state import read_state
from epsam.workspace import Workspace


def report(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: write runs/<name>/report.html out of what the stages before left on disk.

    Parts that have nothing to show (no true masks, no slides, no curves) say so.
    """
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
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


def _run_section(config: Config, workspace: Workspace) -> dict[str, Any]:
    stages = [(stage, read_state(workspace.state, stage.name)) for stage in STAGES]
    done = [(stage, record) for stage, record in stages if record and record["done"]]
    rows = [(stage.name, stage.does, duration(record["seconds"]), f"{record['peak_memory_mib']:,} MiB",
             record["device"]) for stage, record in done]
    seconds = sum(record["seconds"] for _, record in done)
    peak = max((record["peak_memory_mib"] for _, record in done), default=0)
    if rows:
        rows.append(("in all", "", duration(seconds), f"{peak:,} MiB at most", ""))
    in_short = " ".join(duration(seconds).split()[:2])
    machine = {"title": "Time", "value": in_short, "note": f"peak memory {peak / 1024:.1f} GiB"}
    return {
        "name": config.name,
        "version": __version__,
        "headline": headline(config, workspace),
        "tiles": tiles(config, workspace) + ([machine] if done else []),
        "stages": rows,
        "environment": _environment(workspace),
    }


def _environment(workspace: Workspace) -> list[tuple[str, str]]:
    path = workspace.run / "environment.json"
    if not path.is_file():
        return []
    environment = read_environment(path)
    # Version, system and device first; the long list of packages last.
    names = ("device", "profile", "precision", "system", "python", "epsam", "commit")
    rows = [(name, getattr(environment, name)) for name in names if getattr(environment, name)]
    return [*rows, ("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items()))]


def _settings_section(config: Config) -> dict[str, Any]:
    here = flatten(config.model_dump(mode="json"))
    published = flatten(Config(name=config.name).model_dump(mode="json"))
    changed = [(key, _shown(value), _shown(published.get(key))) for key, value in here.items()
               if value != published.get(key)]
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return {"changed": changed, "yaml": text}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
