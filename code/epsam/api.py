"""What `import epsam` offers to scripts and notebooks; each name is imported when it is first used."""

from collections.abc import Sequence
from pathlib import Path

from epsam.config.loading import find_config, load_config
from epsam.config.schema import Config
from epsam.doctor import report
from epsam.doctor.run import examine
from epsam.errors import ConfigError
from epsam.pipeline import STAGES
from epsam.runs.lock import hold
from epsam.runs.reset import reset
from epsam.runs.runner import run_stage
from epsam.runtime.log import set_up_logging
from epsam.workspace import Workspace

DEMO = "demo"


def train(
    config: str | Path | Config, overrides: Sequence[str] = (), *, root: str | Path = ".", restart_from: str = ""
) -> Workspace:
    """Train from slides to report, as ./train.sh does; stages that are done are not run again.

    config: name of a shipped config (`demo`), path of a settings file, or settings. overrides: `section.key=value`, for
    a name or a path. root: the folder of dataset/, checkpoints/ and runs/, by default the current one. restart_from:
    name of a stage; it and those that depend on it are forgotten first.

    The log goes to stdout and to logging_<name>.txt in `root`; the paths of what was made are in the Workspace that is
    returned. Raises EpsamError with one line on what is wrong and how to fix it.
    """
    set_up_logging()
    settings = config if isinstance(config, Config) else load_config(find_config(str(config)), tuple(overrides))
    if config == DEMO and settings.name != DEMO:
        raise ConfigError(f"name={settings.name}: the demo keeps its name; train {settings.name} instead")
    workspace = Workspace(Path(root), settings.name)
    set_up_logging(workspace.log)
    with hold(workspace.run):
        if restart_from:
            reset(STAGES, settings, workspace, restart_from)
        if config == DEMO:
            from epsam.demo.slides import make_demo

            make_demo(workspace.dataset)
        report(examine(settings, workspace))
        for stage in STAGES:
            run_stage(STAGES, stage, settings, workspace)
    return workspace
