"""What a stage of the pipeline is: its command, what it needs, what it makes and what its result depends on."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epsam.config.schema import Config
from epsam.errors import StateError
from epsam.workspace import SPLITS, Workspace


@dataclass(frozen=True)
class Stage:
    """One step of the method, and one command of ./train.sh.

    Paths are patterns below the project's top level: `{name}` is the run's name, `{split}` stands for each split and
    `{round}` for each round of `retrain`.
    """

    name: str
    does: str
    run: Callable[[Config, Workspace, Any], None]
    """Called with the settings, the paths and the Hardware (None without `needs_device`)."""
    needs: "tuple[Stage, ...]" = ()
    """Stages whose results it reads."""
    settings: tuple[str, ...] = ()
    """Settings that decide its result, besides those of the stages it needs: keys or whole sections."""
    outputs: tuple[str, ...] = ()
    """Files and folders that are there when it is done."""
    files: tuple[str, ...] = ()
    """Files that later stages read, as patterns with `*`: their content is recorded when the stage is done."""
    resumes_from: tuple[str, ...] = ()
    """Patterns below runs/<name> of files that it continues from after a stop; deleted when it starts over."""
    temporary: tuple[str, ...] = ()
    """The same, but of no use once the stage is done; deleted then too."""
    repairs_files: bool = False
    """Whether running it again makes only those of its `files` that are damaged or missing, to the same content."""
    uses_true_masks: bool = False
    """Whether its result depends on the true masks."""
    needs_device: bool = True
    """Whether it computes with PyTorch."""
    self_test: Callable[[Any], float] | None = None
    """Of a stage that learns nothing: what a device must pass that is trusted with predictions alone (Apple's MPS)."""
    skipped_when: tuple[str, str | bool] | None = None
    """Setting and value with which there is nothing to do."""

    def is_skipped(self, config: Config) -> bool:
        """Whether the settings leave it nothing to do."""
        if self.skipped_when is None:
            return False
        value: Any = config
        for part in self.skipped_when[0].split("."):
            value = getattr(value, part)
        return value == self.skipped_when[1]

    def output_paths(self, config: Config, workspace: Workspace) -> list[Path]:
        """`outputs` of a run; none when the stage is skipped."""
        if self.is_skipped(config):
            return []
        rounds = range(1, config.retrain.rounds + 1)
        return [
            workspace.root / pattern.replace("{round}", str(round_))
            for filled in _filled(self.outputs, workspace)
            for pattern, round_ in ((filled, n) for n in (rounds if "{round}" in filled else (0,)))
        ]

    def surplus_paths(self, config: Config, workspace: Workspace) -> list[Path]:
        """Outputs of rounds beyond those of the settings, which an earlier run with more rounds made."""
        found = []
        for pattern in (p for p in _filled(self.outputs, workspace) if "{round}" in p):
            path = workspace.root / pattern
            number = re.compile(re.escape(path.name).replace(r"\{round\}", "([0-9]+)"))
            for other in sorted(path.parent.glob("*")):
                match = number.fullmatch(other.name)  # not iter1.1.pth, which is the renamed file of an earlier run
                if match and int(match[1]) > config.retrain.rounds:
                    found.append(other)
        return found

    def recorded_paths(self, workspace: Workspace) -> list[Path]:
        """Files that match `files`, hidden (temporary) ones aside."""
        patterns = _filled(self.files, workspace)
        return [path for p in patterns for path in sorted(workspace.root.glob(p)) if not path.name.startswith(".")]

    def all_needed(self) -> "list[Stage]":
        """Every stage that its result depends on, directly or through others, each after those that it needs."""
        found: list[Stage] = []
        for stage in self.needs:
            found += [s for s in (*stage.all_needed(), stage) if s not in found]
        return found


def _filled(patterns: Iterable[str], workspace: Workspace) -> list[str]:
    named = [pattern.replace("{name}", workspace.name) for pattern in patterns]
    return [p.replace("{split}", split) for p in named for split in (SPLITS if "{split}" in p else ("",))]


def find_stage(stages: Sequence[Stage], name: str) -> Stage:
    """The stage called `name`; raises StateError that lists them all when there is none."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise StateError(f"no stage `{name}`; the stages are {', '.join(stage.name for stage in stages)}")


def depending_on(stages: Sequence[Stage], first: Stage) -> list[Stage]:
    """Every stage that depends on `first`, directly or through others, in the order they run."""
    return [stage for stage in stages if first in stage.all_needed()]
