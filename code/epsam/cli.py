"""The command line: one command per stage, and those beside the pipeline."""

import io
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from epsam.config.loading import find_config, load_config
from epsam.config.schema import Config
from epsam.errors import EpsamError
from epsam.export_command import export_command
from epsam.infer_command import infer_command
from epsam.options import root_option
from epsam.pipeline import PREPROCESS, STAGES
from epsam.runs.lock import release
from epsam.runs.record import end_with_owner
from epsam.runs.reset import reset
from epsam.runs.runner import finished_stages, run_stage
from epsam.runs.stage import Stage
from epsam.runtime.allocator import keep_freed_memory
from epsam.runtime.failures import is_out_of_gpu_memory
from epsam.runtime.log import logger, set_up_logging
from epsam.runtime.ranks import ALONE, Ranks, end_shared_process, has_joined, join
from epsam.workspace import Workspace

INTERRUPTED = 130

config_option = click.option(
    "--config",
    "config_name",
    required=True,
    metavar="FILE",
    help="YAML file of settings, or the name of a shipped one: demo, own, own-small, camelyon16, camelyon17.",
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[section.key=value]...")


class InOrder(click.Group):
    """Lists the commands in the order of the method, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """EP-SAM: tumour segmentation of H&E slides from patch labels. ./train.sh runs the stages in order."""


def _open_run(
    config_name: str, overrides: tuple[str, ...], root: Path, ranks: Ranks = ALONE
) -> tuple[Config, Workspace]:
    set_up_logging(errors_only=not ranks.is_first)
    config = load_config(find_config(config_name), overrides)
    workspace = Workspace(root, config.name)
    set_up_logging(workspace.log, errors_only=not ranks.is_first)
    return config, workspace


def _stage_command(stage: Stage) -> click.Command:
    @config_option
    @root_option
    @overrides_argument
    def command(config_name: str, root: Path, overrides: tuple[str, ...]) -> None:
        with join() as ranks:
            run_stage(STAGES, stage, *_open_run(config_name, overrides, root, ranks), ranks)
        if ranks.count > 1:
            end_shared_process()

    return click.command(stage.name, help=f"{stage.does[0].upper()}{stage.does[1:]}.")(command)


for _stage in STAGES:
    cli.add_command(_stage_command(_stage))


@cli.command("train")
@click.argument("config_name", metavar="[CONFIG]", default="demo")
@click.option("--fresh", is_flag=True, help="Start over.")
@click.option("--from", "first", default="", metavar="STAGE", help="Run this stage and those that depend on it again.")
@root_option
@overrides_argument
def train_command(config_name: str, fresh: bool, first: str, root: Path, overrides: tuple[str, ...]) -> None:
    """Run all stages in order, as ./train.sh does: from slides to report. CONFIG as for --config of a stage."""
    from epsam.api import train

    if "=" in config_name:
        config_name, overrides = "demo", (config_name, *overrides)
    train(config_name, overrides, root=root, restart_from=first or (PREPROCESS.name if fresh else ""))


@cli.command("reset")
@config_option
@root_option
@click.option(
    "--from", "first", default=PREPROCESS.name, show_default=True, metavar="STAGE", help="First stage to run again."
)
@overrides_argument
def reset_command(config_name: str, root: Path, first: str, overrides: tuple[str, ...]) -> None:
    """Forget a stage and those that depend on it, so that they run again."""
    reset(STAGES, *_open_run(config_name, overrides, root), first)


@cli.command("release", hidden=True)
@config_option
@root_option
@overrides_argument
def release_command(config_name: str, root: Path, overrides: tuple[str, ...]) -> None:
    """End the lock that the stages of one script hold; the script calls it when it ends."""
    _, workspace = _open_run(config_name, overrides, root)
    release(workspace.run)


@cli.command("finished", hidden=True)
@config_option
@root_option
@overrides_argument
def finished_command(config_name: str, root: Path, overrides: tuple[str, ...]) -> None:
    """Log which stages are done already; the script reads it, so as not to start a process for each of them."""
    for stage in finished_stages(STAGES, *_open_run(config_name, overrides, root)):
        logger.info(f"{stage.name}: done already")


@cli.command("demo")
@config_option
@root_option
@overrides_argument
def demo_command(config_name: str, root: Path, overrides: tuple[str, ...]) -> None:
    """Draw the demo slides."""
    from epsam.demo.slides import make_demo

    _, workspace = _open_run(config_name, overrides, root)
    make_demo(workspace.dataset)


@cli.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--mpp", type=float, metavar="UM_PER_PIXEL", help="Resolution, needed where SOURCE does not say it.")
def convert_command(source: Path, target: Path, mpp: float | None) -> None:
    """Make a slide (tiled JPEG pyramid) of a PNG, JPEG, striped or 12-bit TIFF."""
    from epsam.slides.conversion import convert

    set_up_logging()
    convert(source, target, mpp)


@cli.command("slides-csv")
@config_option
@root_option
@overrides_argument
def slides_csv_command(config_name: str, root: Path, overrides: tuple[str, ...]) -> None:
    """Write dataset/NAME/slides.csv to fill in: patient, split, label and more of each slide."""
    from epsam.patches.manifest import find_slides
    from epsam.patches.slide_table import write_template

    config, workspace = _open_run(config_name, overrides, root)
    slides = [record.slide for record in find_slides(workspace, config.slides) if record.is_slide]
    write_template(workspace.slide_table, ({"slide": slide} for slide in slides))
    logger.info(f"{workspace.slide_table}: {len(slides)} slides; fill in what you know and leave the rest empty")


@cli.command("settings")
@click.argument("section", default="")
@click.option("--markdown", is_flag=True, help="Print tables, as in docs/settings.md.")
def settings_command(section: str, markdown: bool) -> None:
    """Print every setting with its default, values, unit and meaning; of SECTION (cam) or one setting alone."""
    from epsam.config.describe import as_markdown, as_text, describe

    set_up_logging()
    groups = describe(section)
    click.echo(as_markdown(groups) if markdown else as_text(groups))


@cli.command("doctor")
@config_option
@root_option
@click.option("--json", "as_json_", is_flag=True, help="Print the checks as JSON on stdout instead.")
@overrides_argument
def doctor_command(config_name: str, root: Path, as_json_: bool, overrides: tuple[str, ...]) -> None:
    """Check that everything a run needs is there, and say how to fix what is not."""
    from epsam.doctor import as_json, report
    from epsam.doctor.run import examine

    if as_json_:
        config = load_config(find_config(config_name), overrides)
        checks = examine(config, Workspace(root, config.name))
        click.echo(as_json(checks))
        sys.exit(any(check.status == "error" for check in checks))
    else:
        config, workspace = _open_run(config_name, overrides, root)
        report(examine(config, workspace))


cli.add_command(infer_command)
cli.add_command(export_command)


@cli.command("fetch")
@click.argument("model_types", nargs=-1, required=True, metavar="vit_b|vit_l|vit_h|resnet18|resnet34|resnet50...")
@root_option
def fetch_command(model_types: tuple[str, ...], root: Path) -> None:
    """Fetch weights into checkpoints/, e.g. on a machine with a network for one without."""
    from epsam.runtime.downloads import fetch

    set_up_logging()
    for model_type in model_types:
        logger.info(f"{model_type}: {fetch(model_type, root / 'checkpoints')}")


def _stop(*_: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, 1)  # once more, since Python swallows what is raised in a finaliser
    raise KeyboardInterrupt


def _end_with_error() -> NoReturn:
    if has_joined():
        end_shared_process(1)
    sys.exit(1)


def main() -> None:
    """Run the command line; known errors end as one line with status 1, Ctrl-C and SIGTERM with 130."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup and `&` have SIGINT ignored
            signal.signal(number, _stop)
    end_with_owner()
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        cli.main(prog_name="epsam", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):  # the latter is a RuntimeError, so first
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            logger.error("stopped. What was finished is kept; run the same command again to continue")
        finally:
            os._exit(INTERRUPTED)  # loader processes may still be busy; nothing is left to write
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}; see --help", err=True)
        sys.exit(error.exit_code)
    except EpsamError as error:
        logger.error(f"error: {error}")
        _end_with_error()
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        logger.error(f"error: {what}. What was finished is kept; run the same command again when this is fixed")
        _end_with_error()
    except RuntimeError as error:
        if not is_out_of_gpu_memory(error):
            raise
        logger.error(
            "error: the GPU's memory is full (nvidia-smi lists what uses it). Free it, set a smaller profile "
            "(profile=8gb), or profile=cpu, and run the same command again: what was finished is kept"
        )
        _end_with_error()
