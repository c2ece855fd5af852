"""The method, stage by stage: what ./train.sh runs."""

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epsam import __version__
from epsam.config import Config
from epsam.environment import write_environment
from epsam.errors import StateError
from epsam.runtime.checkpoints import flatten, settings_file
from epsam.runtime.files import write_text
from epsam.runtime.log import logger
from epsam.runtime.seeds import seed_of
from epsam.runtime.state import Stopwatch, check_signature, lock, read_state, write_done, write_started
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
    measures: bool = False
    """True: its result depends on the true masks."""
    needs_device: bool = True
    """False: called with (config, workspace) alone, without torch."""


def _decoders(config: Config, workspace: Workspace) -> list[Path]:
    return [workspace.decoder(n) for n in range(1, config.retrain.rounds + 1)]


STAGES = (
    Stage("preprocess", "cut patches from the slides", "epsam.slides.extraction:preprocess",
          ("slides", "patches", "classifier.positive_share"), lambda c, w: [w.split(s) / "image" for s in SPLITS],
          needs_device=False),
    Stage("train-classifier", "learn the patch labels", "epsam.classifier.training:train_classifier",
          ("classifier",), lambda c, w: [w.classifier], ("state/classifier*.pth",)),
    Stage("initial-masks", "class activation maps and the masks cut from them", "epsam.cam:make_initial_masks",
          ("cam",), lambda c, w: [w.cams(s) for s in SPLITS], ("cams/*",)),
    Stage("embed", "run SAM's image encoder once over all patches", "epsam.sam.embeddings:embed",
          ("sam",), lambda c, w: []),
    Stage("finetune", "round 0: SAM's decoder on the initial masks", "epsam.sam.finetuning:finetune",
          ("prompts", "finetune"), lambda c, w: [w.decoder(0)], ("state/round0*",)),
    Stage("retrain", "rounds 1 to N: pseudo-labels, then the decoder anew", "epsam.sam.retraining:retrain",
          ("retrain",), _decoders, ("state/round[1-9]*",)),
    Stage("evaluate", "the table on the test split", "epsam.evaluation.evaluate:evaluate",
          ("evaluate", "inference.classifier_probability"), lambda c, w: [w.metrics_csv],
          ("state/supervised*", "state/predictions*"), measures=True),
    Stage("report", "one page to look at", "epsam.evaluation.report:report", (), lambda c, w: [w.report],
          measures=True),
)


def find_stage(name: str) -> Stage:
    """The stage called `name`; StateError lists them all when there is none."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise StateError(f"no stage `{name}`; the stages are {', '.join(s.name for s in STAGES)}")


def run_stage(stage: Stage, config: Config, workspace: Workspace) -> None:
    """Run a stage, go on with it, or say that it is done.

    Raises StateError when a stage before it is not done, or when settings or data changed since it started.
    """
    with lock(workspace.run):
        _check_earlier(stage, config, workspace)
        signature = signature_of(stage, config, workspace)
        record = read_state(workspace.state, stage.name)
        if record:
            check_signature(stage.name, record["signature"], signature)
            missing = [path for path in stage.outputs(config, workspace) if not path.exists()]
            if record["done"] and not missing:
                logger.info(f"{stage.name}: done already")
                return
            if record["done"]:
                logger.warning(f"{stage.name}: {missing[0]} is missing; the stage runs again")
                _forget_resume_points(stage, workspace)
        _start(stage, config, workspace, signature)


def _start(stage: Stage, config: Config, workspace: Workspace, signature: dict[str, Any]) -> None:
    # Torch is imported here, so that a stage that is done already says so at once.
    from epsam.runtime.device import choose_hardware
    from epsam.runtime.memory import peak_memory_mib

    logger.info(f"--- {stage.name}: {stage.does} ({workspace.name})")
    write_text(workspace.run / "config.yaml", config_as_yaml(config))
    write_started(workspace.state, stage.name, signature)
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
    signature = signature_of(stage, config, workspace)  # preprocess made the patches that belong to it
    write_done(workspace.state, stage.name, signature, seconds=seconds, peak_memory_mib=peak, device=device)
    logger.info(f"{stage.name}: done in {seconds:.0f} s, peak memory {peak} MiB")


def config_as_yaml(config: Config) -> str:
    """All settings, defaults filled in."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def signature_of(stage: Stage, config: Config, workspace: Workspace) -> dict[str, Any]:
    """What a stage's result depends on: settings of its own and of the stages before, data, program version."""
    flat = flatten(config.model_dump(mode="json"))
    upto = STAGES[: STAGES.index(stage) + 1]
    prefixes = [prefix for s in upto for prefix in s.settings]
    kept = {k: v for k, v in flat.items() if any(k == p or k.startswith(p + ".") for p in prefixes)}
    if stage is STAGES[0]:
        kept["slides in images/ and annotations/"] = _digest(workspace.slides, workspace.annotations)
    else:
        kept["patches"] = _digest(*(workspace.split(s) / "image" for s in SPLITS))
    if stage.measures:
        kept["masks"] = _digest(*(workspace.split(s) / "mask" for s in SPLITS))
    return kept | {"epsam": __version__}


def _digest(*folders: Path) -> str:
    """Names and sizes of the files in the folders, as one number."""
    files = (f for folder in folders if folder.is_dir() for f in sorted(folder.iterdir()) if not f.name.startswith("."))
    return f"{seed_of(*((f.name, f.stat().st_size) for f in files)):x}"


def _check_earlier(stage: Stage, config: Config, workspace: Workspace) -> None:
    for earlier in STAGES[: STAGES.index(stage)]:
        record = read_state(workspace.state, earlier.name)
        if not record or not record["done"]:
            raise StateError(f"{stage.name} needs {earlier.name}, which is not done; run ./train.sh, or that stage first")


def reset(config: Config, workspace: Workspace, first: str) -> None:
    """Forget stage `first` and all after it, so that they run anew; kept embeddings are used again if they fit."""
    stages = STAGES[STAGES.index(find_stage(first)):]
    with lock(workspace.run):
        for stage in stages:
            (workspace.state / f"{stage.name}.json").unlink(missing_ok=True)
            _forget_resume_points(stage, workspace)
            for output in stage.outputs(config, workspace):
                if output.is_file() and output != workspace.metrics_csv:
                    output.unlink()
                    settings_file(output).unlink(missing_ok=True)
        if stages[0] is STAGES[0] and workspace.patches_csv.is_file():
            # Patches cut by this program can be cut again; patches that somebody brought have no patches.csv.
            for split in SPLITS:
                shutil.rmtree(workspace.split(split), ignore_errors=True)
            workspace.patches_csv.unlink()
            workspace.slides_csv.unlink(missing_ok=True)
    logger.info(f"{workspace.name}: {', '.join(s.name for s in stages)} will run anew")


def _forget_resume_points(stage: Stage, workspace: Workspace) -> None:
    for pattern in stage.resumes_from:
        for path in workspace.run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
