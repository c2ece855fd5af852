"""Runs one stage of the pipeline: locks, checks what was done before, records what is done."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epsam.config.schema import Config
from epsam.errors import StateError
from epsam.results import restore_table
from epsam.runs.environment import write_environment
from epsam.runs.inventory import check_files, difference, record_files
from epsam.runs.lock import lock
from epsam.runs.record import Stopwatch, check_signature, read_state, write_done, write_started
from epsam.runs.signature import MASKS, PATCHES, SLIDES, data_of, has_files, signature
from epsam.runtime.files import remove, remove_temporaries, write_text
from epsam.runtime.log import logger
from epsam.runtime.old_weights import keep_old_weights
from epsam.workspace import SPLITS, Workspace


@dataclass(frozen=True)
class Stage:
    """One step of the method."""

    name: str
    does: str
    function: str
    """module:function, imported when the stage runs; called with (config, workspace, hardware)."""
    settings: tuple[str, ...]
    """Settings that decide its result, besides those of the stages before."""
    outputs: Callable[[Config, Workspace], list[Path]]
    """Files that are there when it is done."""
    resumes_from: tuple[str, ...] = ()
    """Patterns under runs/<name>/ of what it goes on from after a stop; deleted when it starts anew."""
    scratch: tuple[str, ...] = ()
    """The same, but of no use to anyone once the stage is done; deleted then too."""
    measures: bool = False
    """True: its result depends on the true masks."""
    remakes: bool = False
    """True: files of it that are damaged or gone are made anew one by one, to the same content, when it runs again."""
    needs_device: bool = True
    """False: called with (config, workspace) alone, without torch."""


def _decoders(config: Config, workspace: Workspace) -> list[Path]:
    """Decoders of rounds 1 to N, and of rounds beyond that an earlier run with a larger N left behind."""
    wanted = [workspace.decoder(n) for n in range(1, config.retrain.rounds + 1)]
    name = re.compile(
        re.escape(workspace.name) + r"_decoder_iter\d+\.pth"
    )  # not iter1.1.pth, which an earlier run made
    found = {path for path in workspace.checkpoints.glob("*.pth") if name.fullmatch(path.name)}
    return wanted + sorted(found - set(wanted))


STAGES = (
    Stage(
        "preprocess",
        "cut patches from the slides",
        "epsam.stages.preprocess:preprocess",
        ("slides", "patches", "classifier.positive_share"),
        lambda c, w: [w.split(s) / "image" for s in SPLITS],
        needs_device=False,
    ),
    Stage(
        "train-classifier",
        "learn the patch labels",
        "epsam.stages.train_classifier:train_classifier",
        ("classifier",),
        lambda c, w: [w.classifier],
        scratch=("state/classifier*.pth",),
    ),
    Stage(
        "initial-masks",
        "class activation maps and the masks cut from them",
        "epsam.stages.initial_masks:make_initial_masks",
        ("cam", "sam.model_type", "sam.checkpoint"),
        lambda c, w: [w.cams(s) for s in SPLITS],
        resumes_from=("cams/*",),
    ),
    Stage(
        "embed",
        "run SAM's image encoder once over all patches",
        "epsam.stages.embed:embed",
        ("sam",),
        lambda c, w: [],
        remakes=True,
    ),
    Stage(
        "finetune",
        "round 0: SAM's decoder on the initial masks",
        "epsam.stages.finetune:finetune",
        ("prompts", "finetune"),
        lambda c, w: [w.decoder(0)],
        scratch=("state/round0*",),
    ),
    Stage(
        "retrain",
        "rounds 1 to N: pseudo-labels, then the decoder anew",
        "epsam.stages.retrain:retrain",
        ("retrain",),
        _decoders,
        scratch=("state/round[1-9]*",),
    ),
    Stage(
        "evaluate",
        "the table on the test split",
        "epsam.stages.evaluate:evaluate",
        ("evaluate", "inference.classifier_probability"),
        lambda c, w: [w.metrics_csv],
        resumes_from=("state/predictions*",),
        scratch=("state/supervised*",),
        measures=True,
    ),
    Stage("report", "one page to look at", "epsam.stages.report:report", (), lambda c, w: [w.report], measures=True),
)


def find_stage(name: str) -> Stage:
    """The stage called `name`; StateError lists them all when there is none."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise StateError(f"no stage `{name}`; the stages are {', '.join(s.name for s in STAGES)}")


def run_stage(stage: Stage, config: Config, workspace: Workspace) -> None:
    """Run a stage, go on with it, or say that it is done.

    Raises StateError when a stage before it is not done, or when settings, data or files of it or of a stage before
    have changed since.
    """
    with lock(workspace.run):
        data = data_of(workspace, *_kinds(stage))
        _check_earlier(stage, config, workspace, data)
        record = read_state(workspace.state, stage.name)
        if not record:
            clear(stage, config, workspace)  # what a run of this name left whose folder was deleted since
        else:
            _check(stage, config, workspace, data, record)
            missing = [path for path in stage.outputs(config, workspace) if not path.exists()] if record["done"] else []
            if record["done"] and not missing:
                if not (bad := _damaged(stage, workspace)):
                    if stage.measures:
                        restore_table(workspace)
                    logger.info(f"{stage.name}: done already")
                    return
                logger.warning(f"{stage.name}: {bad[0]} is missing or damaged; the stage runs again and makes it anew")
            elif record["done"]:
                logger.warning(f"{stage.name}: {missing[0]} is missing; the stage runs again")
                clear(stage, config, workspace)
        if stage.measures:
            restore_table(workspace)
        _start(stage, config, workspace, _signature(stage, config, data))
        for pattern in stage.scratch:
            remove(workspace.run.glob(pattern))


def _start(stage: Stage, config: Config, workspace: Workspace, signed: dict[str, Any]) -> None:
    # Torch is imported here, so that a stage that is done already says so at once.
    from epsam.runtime.device import choose_hardware
    from epsam.runtime.memory import peak_memory_mib

    logger.info(f"--- {stage.name}: {stage.does} ({workspace.name})")
    for folder in (workspace.run, *(workspace.split(split) for split in SPLITS)):
        remove_temporaries(folder)
    for output in stage.outputs(config, workspace):
        remove_temporaries(output.parent, output.stem)
    write_text(workspace.run / "config.yaml", config_as_yaml(config))
    write_started(workspace.state, stage.name, signed)
    module, _, name = stage.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    watch = Stopwatch()
    if stage.needs_device:
        hardware = choose_hardware(config.profile)
        write_environment(workspace.run / "environment.json", hardware)
        function(config, workspace, hardware)
        device = str(hardware.device)
    else:
        function(config, workspace)
        device = "cpu"
    seconds, peak = watch.seconds, round(peak_memory_mib(device))
    record_files(workspace, stage.name)
    write_done(workspace.state, stage.name, signed, seconds=seconds, peak_memory_mib=peak, device=device)
    logger.info(f"{stage.name}: done in {seconds:.0f} s, peak memory {peak} MiB")


def clear(stage: Stage, config: Config, workspace: Workspace) -> None:
    """Delete the files that a stage would go on from or take for its own result; folders of patches stay.

    Weights are renamed instead: they may be the only ones.
    """
    for pattern in (*stage.resumes_from, *stage.scratch):
        remove(workspace.run.glob(pattern))
    for output in stage.outputs(config, workspace):
        if output.parent == workspace.checkpoints:
            keep_old_weights(output)
        elif not output.is_dir() and output != workspace.metrics_csv:  # which holds rows of other stages too
            remove([output])


def _check_earlier(stage: Stage, config: Config, workspace: Workspace, data: dict[str, str]) -> None:
    for earlier in STAGES[: STAGES.index(stage)]:
        record = read_state(workspace.state, earlier.name)
        if not record or not record["done"]:
            raise StateError(
                f"{stage.name} needs {earlier.name}, which is not done; run ./train.sh, or that stage first"
            )
        _check_files(earlier, workspace, measures=stage.measures)
        _check(earlier, config, workspace, data, record)


def _check_files(stage: Stage, workspace: Workspace, *, measures: bool) -> None:
    """Raise StateError when a file that a stage wrote is not what it was; see `check_files`."""
    if not stage.remakes:
        following = STAGES[min(STAGES.index(stage) + 1, len(STAGES) - 1)]
        check_files(workspace, stage.name, following.name, measures=measures)
    elif bad := _damaged(stage, workspace):
        raise StateError(
            f"{bad[0]} is missing or damaged; run ./train.sh, or the stage {stage.name} first: it makes that file anew"
        )


def _damaged(stage: Stage, workspace: Workspace) -> list[Path]:
    """Files of a stage that is done which its next run makes anew; StateError for those that it does not."""
    if not stage.remakes:
        _check_files(stage, workspace, measures=stage.measures)
        return []
    found = difference(workspace, stage.name)
    return found.changed + found.missing


def _check(stage: Stage, config: Config, workspace: Workspace, data: dict[str, str], record: dict[str, Any]) -> None:
    """Raise StateError when a stage was run with other settings or data; slides may go once patches are cut."""
    saved = record["signature"]
    if record["done"] and stage is STAGES[0] and not has_files(workspace.slides):
        data = data | {SLIDES: saved.get(SLIDES)}
    check_signature(stage.name, saved, _signature(stage, config, data))


def _kinds(stage: Stage) -> tuple[str, ...]:
    """What the check of a stage and of those before it compares."""
    return (SLIDES,) if stage is STAGES[0] else (SLIDES, PATCHES, *([MASKS] if stage.measures else []))


def signature_of(stage: Stage, config: Config, workspace: Workspace) -> dict[str, Any]:
    """What the result of a stage depends on, as its record keeps it."""
    return _signature(stage, config, data_of(workspace))


def _signature(stage: Stage, config: Config, data: dict[str, str]) -> dict[str, Any]:
    settings = (key for s in STAGES[: STAGES.index(stage) + 1] for key in s.settings)
    if stage is STAGES[0]:
        return signature(settings, config, {SLIDES: data[SLIDES]})
    return signature(settings, config, {key: data[key] for key in (PATCHES, *([MASKS] if stage.measures else []))})


def config_as_yaml(config: Config) -> str:
    """All settings, defaults filled in."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
