"""Runs one stage of the pipeline: locks the run, checks what was done before, records what is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from epsam.config.paths import counted_from
from epsam.config.schema import Config
from epsam.errors import DataError, StateError
from epsam.models.initial import initial_hashes
from epsam.results import restore_table
from epsam.runs.environment import write_environment
from epsam.runs.inventory import check_files, difference, record_files, recorded_files
from epsam.runs.lock import lock
from epsam.runs.record import Stopwatch, check_signature, read_state, write_done, write_started
from epsam.runs.signature import MASKS, PATCHES, SLIDES, data_of, has_sources, signature
from epsam.runs.stage import Stage, depending_on
from epsam.runtime.files import remove, remove_temporaries, remove_temporaries_of, write_text
from epsam.runtime.log import logger
from epsam.runtime.old_weights import keep_old_weights
from epsam.runtime.ranks import ALONE, Ranks
from epsam.workspace import SPLITS, Workspace


def run_stage(
    stages: Sequence[Stage], stage: Stage, config: Config, workspace: Workspace, ranks: Ranks = ALONE
) -> None:
    """Run a stage of the pipeline `stages`, continue it, or log that it is done.

    When it ends with other files than it had before, the stages that depend on it run again. Raises StateError when a
    stage that it needs is not done, or when settings, data or files of it or of those that it needs have changed. Of
    several processes the first does all this; the others do their share of the stage's work.
    """
    if not ranks.is_first:
        _take_part(stage, config, workspace, ranks)
        return
    with lock(workspace.run):
        run = _Run(stages, config, workspace, data_of(workspace, *_kinds_of_data(stage)))
        run.check_needed(stage)
        if run.is_done(stage):
            logger.info(f"{stage.name}: done already")
            ranks.decide(lambda: False)
            return
        before = recorded_files(workspace, stage)
        run.execute(stage, ranks)
        if before and before != recorded_files(workspace, stage):
            run.forget_depending(stage)
        for pattern in stage.temporary:
            remove(workspace.run.glob(pattern))


def _take_part(stage: Stage, config: Config, workspace: Workspace, ranks: Ranks) -> None:
    """What a process other than the first does of a stage, as soon as the first has found that there is work to do."""
    if ranks.decide(lambda: False) and stage.needs_device:
        from epsam.runtime.device import choose_hardware

        stage.run(counted_from(config, workspace.root), workspace, choose_hardware(config.profile, ranks))
        ranks.wait()


def finished_stages(stages: Sequence[Stage], config: Config, workspace: Workspace) -> list[Stage]:
    """The first of `stages` that are done, up to one with anything left to do or to report: that is for `run_stage`."""
    with lock(workspace.run):
        recorded = list(takewhile(lambda stage: _is_recorded_as_done(workspace, stage), stages))
        if not recorded:
            return []
        run = _Run(stages, config, workspace, data_of(workspace))
        return list(takewhile(run.is_unchanged, recorded))


def _is_recorded_as_done(workspace: Workspace, stage: Stage) -> bool:
    try:
        record = read_state(workspace.state, stage.name)
    except DataError:
        return False  # the stage reports it
    return bool(record and record["done"])


@dataclass(frozen=True)
class _Run:
    """A run of the pipeline with its settings and data as they are now."""

    stages: Sequence[Stage]
    config: Config
    workspace: Workspace
    data: dict[str, str]
    """What the run is made from, see `data_of`."""

    def check_needed(self, stage: Stage) -> None:
        """Raise StateError when a stage that `stage` needs is not done, or has changed since."""
        for needed in stage.all_needed():
            record = read_state(self.workspace.state, needed.name)
            if not record or not record["done"]:
                raise StateError(
                    f"{stage.name} needs {needed.name}, which is not done; run ./train.sh, or that stage first"
                )
            self._check_files(needed, true_masks=stage.uses_true_masks)
            self._check_signature(needed, record)

    def is_done(self, stage: Stage) -> bool:
        """Whether there is nothing to do; clears what the stage must not continue from."""
        record = read_state(self.workspace.state, stage.name)
        if stage.uses_true_masks:
            restore_table(self.workspace)
        if not record:
            clear(stage, self.config, self.workspace)  # what an earlier run of this name left, whose folder was deleted
            return False
        self._check_signature(stage, record)
        if not record["done"]:
            return False
        missing = [path for path in stage.output_paths(self.config, self.workspace) if not path.exists()]
        if missing:
            logger.warning(f"{stage.name}: {missing[0]} is missing; the stage runs again")
            clear(stage, self.config, self.workspace)
            return False
        if stage.repairs_files and (damaged := self._damaged(stage)):
            logger.warning(f"{stage.name}: {damaged[0]} is missing or damaged; the stage runs again to replace it")
            return False
        self._check_files(stage, true_masks=stage.uses_true_masks)
        return True

    def is_unchanged(self, stage: Stage) -> bool:
        """Whether `is_done` finds a stage that is recorded as done to be so, and has nothing to report or to clear.

        The stages that it needs must have been checked in the same way.
        """
        record = read_state(self.workspace.state, stage.name)
        if not record or any(not path.exists() for path in stage.output_paths(self.config, self.workspace)):
            return False
        if stage.uses_true_masks:
            restore_table(self.workspace)
        try:
            self._check_signature(stage, record)
            self._check_files(stage, true_masks=stage.uses_true_masks)
        except StateError:
            return False
        return True

    def execute(self, stage: Stage, ranks: Ranks = ALONE) -> None:
        """Run a stage and record that it is done."""
        workspace, signed = self.workspace, self.signature_of(stage)
        logger.info(f"--- {stage.name}: {stage.does} ({workspace.name})")
        for folder in (workspace.run, *(workspace.split(split) for split in SPLITS)):
            remove_temporaries(folder)
        for output in stage.output_paths(self.config, workspace):
            remove_temporaries_of(output)  # other runs write to checkpoints/ too
            remove_temporaries_of(output.with_name(f"{output.name}.json"))
        write_text(workspace.run / "config.yaml", config_as_yaml(self.config))
        write_started(workspace.state, stage.name, signed)
        watch = Stopwatch()
        ranks.decide(lambda: True)
        hardware = self._hardware(stage, ranks) if stage.needs_device else None
        stage.run(counted_from(self.config, workspace.root), workspace, hardware)
        if stage.needs_device:
            ranks.wait()
        device = str(hardware.device) if hardware else "cpu"
        seconds, peak = watch.seconds, round(_peak_memory_mib(device))
        record_files(workspace, stage)
        write_done(workspace.state, stage.name, signed, seconds=seconds, peak_memory_mib=peak, device=device)
        logger.info(f"{stage.name}: done in {seconds:.0f} s, peak memory {peak} MiB")

    def forget_depending(self, stage: Stage) -> None:
        """Have the stages that depend on `stage` run again, as they were made from other files of it."""
        forgotten = [s for s in depending_on(self.stages, stage) if read_state(self.workspace.state, s.name)]
        for other in reversed(forgotten):
            remove([self.workspace.state / f"{other.name}.json", self.workspace.results(other.name)])
            clear(other, self.config, self.workspace)
        if forgotten:
            names = ", ".join(other.name for other in forgotten)
            logger.warning(f"{stage.name} gave other files than before, so these stages run again: {names}")

    def signature_of(self, stage: Stage) -> dict[str, Any]:
        """What the result of a stage depends on, as its record keeps it."""
        if not stage.needs:
            return signature(stage.settings, self.config, {SLIDES: self.data[SLIDES]})
        settings = [key for s in (*stage.all_needed(), stage) for key in s.settings]
        kinds = (PATCHES, MASKS) if stage.uses_true_masks else (PATCHES,)
        initial = initial_hashes(self.config, self.workspace) if "init_from" in settings else {}
        return signature(settings, self.config, {kind: self.data[kind] for kind in kinds} | initial)

    def _hardware(self, stage: Stage, ranks: Ranks) -> Any:
        # PyTorch is imported here, so that a stage that is done already is reported without loading it.
        from epsam.runtime.device import choose_hardware

        hardware = choose_hardware(self.config.profile, ranks, stage.self_test)
        write_environment(self.workspace.run / "environment.json", hardware)
        return hardware

    def _check_signature(self, stage: Stage, record: dict[str, Any]) -> None:
        """Raise StateError when a stage was run with other settings or data; slides may go once patches are cut."""
        saved, data = record["signature"], self.data
        if record["done"] and not stage.needs and not has_sources(self.workspace):
            data = data | {SLIDES: saved.get(SLIDES)}
        now = _Run(self.stages, self.config, self.workspace, data).signature_of(stage)
        check_signature(stage.name, saved, now)

    def _check_files(self, stage: Stage, *, true_masks: bool) -> None:
        """Raise StateError when a file that a stage wrote is not what it was."""
        if not stage.repairs_files:
            following = depending_on(self.stages, stage) or [stage]
            check_files(self.workspace, stage, following[0].name, true_masks=true_masks)
        elif damaged := self._damaged(stage):
            raise StateError(
                f"{damaged[0]} is missing or damaged; run ./train.sh, or the stage {stage.name} first: it makes that "
                "file again"
            )

    def _damaged(self, stage: Stage) -> list[Path]:
        found = difference(self.workspace, stage)
        return found.changed + found.missing


def clear(stage: Stage, config: Config, workspace: Workspace) -> None:
    """Delete the files that a stage would continue from or take for its own result; folders of patches stay.

    Weights are renamed instead: they may be the only ones.
    """
    for pattern in (*stage.resumes_from, *stage.temporary):
        remove(workspace.run.glob(pattern))
    for output in (*stage.output_paths(config, workspace), *stage.surplus_paths(config, workspace)):
        if output.parent == workspace.checkpoints:
            keep_old_weights(output)
        elif not output.is_dir() and output != workspace.metrics_csv and not stage.repairs_files:
            remove([output])  # metrics.csv holds rows of other stages; kept embeddings are used again if they fit


def signature_of(stages: Sequence[Stage], stage: Stage, config: Config, workspace: Workspace) -> dict[str, Any]:
    """What the result of a stage depends on now, as its record would keep it."""
    return _Run(stages, config, workspace, data_of(workspace)).signature_of(stage)


def config_as_yaml(config: Config) -> str:
    """All settings, defaults filled in."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _kinds_of_data(stage: Stage) -> tuple[str, ...]:
    """What the checks of a stage and of those that it needs compare."""
    if not stage.needs:
        return (SLIDES,)
    return (SLIDES, PATCHES, MASKS) if stage.uses_true_masks else (SLIDES, PATCHES)


def _peak_memory_mib(device: str) -> float:
    from epsam.runtime.memory import peak_memory_mib

    return peak_memory_mib(device)
