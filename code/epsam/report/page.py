"""Sections of the report that describe the run itself: time, environment, settings."""

from collections.abc import Sequence
from typing import Any

import yaml

from epsam.config.schema import Config
from epsam.report.result_section import headline, tiles
from epsam.runs.environment import read_environment
from epsam.runs.record import read_state
from epsam.runtime.sidecar import flatten
from epsam.runtime.text import duration_text
from epsam.workspace import Workspace


def run_section(config: Config, workspace: Workspace, stages: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The section "Run": time and memory of `stages` (names and what they do), and where they ran."""
    records = [(name, does, read_state(workspace.state, name)) for name, does in stages]
    done = [(name, does, record) for name, does, record in records if record and record["done"]]
    rows = [
        (name, does, duration_text(record["seconds"]), f"{record['peak_memory_mib']:,} MiB", record["device"])
        for name, does, record in done
    ]
    seconds = sum(record["seconds"] for *_, record in done)
    peak = max((record["peak_memory_mib"] for *_, record in done), default=0)
    if rows:
        rows.append(("in all", "", duration_text(seconds), f"{peak:,} MiB at most", ""))
    in_short = " ".join(duration_text(seconds).split()[:2])
    machine = {"title": "Time", "value": in_short, "note": f"peak memory {peak / 1024:.1f} GiB"}
    return {
        "name": config.name,
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


def settings_section(config: Config) -> dict[str, Any]:
    """The section "Settings": those that differ from the published ones, and all of them."""
    here = flatten(config.model_dump(mode="json"))
    published = flatten(Config(name=config.name).model_dump(mode="json"))
    changed = [
        (key, _shown(value), _shown(published.get(key))) for key, value in here.items() if value != published.get(key)
    ]
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return {"changed": changed, "yaml": text}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
