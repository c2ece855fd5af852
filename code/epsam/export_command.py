"""The command `export-model`: everything that a model needs to predict, in one file."""

from pathlib import Path
from typing import Any

import click

from epsam.config.paths import settings_for_weights
from epsam.config.schema import Config
from epsam.errors import CheckpointError, StateError
from epsam.models.find import Model, find_model
from epsam.options import PathArgument, root_option
from epsam.results import read_results
from epsam.runs.environment import package_versions, read_environment
from epsam.runtime.downloads import WEIGHTS
from epsam.runtime.files import atomic, sha256
from epsam.runtime.log import logger, set_up_logging
from epsam.runtime.model_file import FORMAT, KEY, SUFFIX, ModelRecord, WeightsSource
from epsam.runtime.sidecar import read_metadata
from epsam.workspace import Workspace


@click.command("export-model")
@click.argument("name")
@click.argument("target", metavar="FILE", type=PathArgument())
@click.argument("overrides", nargs=-1, metavar="[sam.checkpoint=FILE]")
@root_option
def export_command(name: str, target: Path, overrides: tuple[str, ...], root: Path) -> None:
    """Pack the model of the run NAME into FILE, which ends in .epsam: for ./infer.sh --model FILE, anywhere."""
    set_up_logging()
    export_model(name, target, root, overrides)


def export_model(name: str, target: Path, root: Path = Path(), overrides: tuple[str, ...] = ()) -> None:
    """Pack classifier, decoder and student of the run `name`, those that are there, with settings and figures.

    Published weights of SAM are named by their hash, others are packed too. Raises CheckpointError when parts are missing
    or do not belong together, StateError when `target` is another file.
    """
    if target.suffix != SUFFIX:
        raise StateError(f"{target}: a model file ends in {SUFFIX}; name it so")
    workspace = Workspace(root, name)
    model = find_model(name, workspace.checkpoints)
    parts: dict[str, WeightsSource] = {
        part: source
        for part, source in (("classifier", model.classifier), ("decoder", model.decoder), ("student", model.student))
        if source
    }
    config = _settings(model, workspace, overrides)
    sam = _unpublished_sam(config, workspace) if model.decoder and model.classifier else None
    if sam and model.decoder:
        _check_belongs(config, sam, model.decoder)
        parts["sam"] = sam
    metadata = [read_metadata(source) for part, source in parts.items() if part != "sam"]
    mpp = next((found["mpp"] for found in metadata if found.get("mpp")), None)
    published = WEIGHTS[config.sam.model_type].sha256 if model.decoder and not sam else None
    record = ModelRecord(
        format=FORMAT,
        name=name,
        settings=settings_for_weights(config, mpp),
        mpp=mpp,
        encoder=next((found["encoder"] for found in metadata if found.get("encoder")), ""),
        sam_sha256=published,
        versions=_versions(workspace),
        training=read_results(workspace),
    )
    _write(target, parts, record)
    logger.info(f"{target}: {', '.join(parts)} of {name}; predict with ./infer.sh SLIDE --model {target}")


def _settings(model: Model, workspace: Workspace, overrides: tuple[str, ...]) -> Config:
    from epsam.config.loading import load_config
    from epsam.inference.checkpoints import settings_of

    source = model.student or model.decoder
    if source is None:
        raise CheckpointError(f"the model {model.name} has neither a student nor a decoder")
    config, saved = settings_of([source], None, overrides), workspace.run / "config.yaml"
    if config.sam.checkpoint is None and saved.is_file():  # paths do not travel with weights
        checkpoint = load_config(saved).sam.checkpoint
        path = workspace.root / checkpoint if checkpoint else None
        config = config.model_copy(update={"sam": config.sam.model_copy(update={"checkpoint": path})})
    return config


def _unpublished_sam(config: Config, workspace: Workspace) -> Path | None:
    """SAM's weights where nobody can fetch them by name."""
    from epsam.sam.checkpoint import find_weights

    if config.sam.checkpoint is None:
        return find_weights("demo", workspace.checkpoints) if config.sam.model_type == "demo" else None
    return None if sha256(config.sam.checkpoint) == _published(config) else config.sam.checkpoint


def _published(config: Config) -> str | None:
    return WEIGHTS[config.sam.model_type].sha256 if config.sam.model_type in WEIGHTS else None


def _check_belongs(config: Config, sam: Path, decoder: WeightsSource) -> None:
    """Raise CheckpointError when the decoder was trained on another SAM."""
    from epsam.sam.checkpoint import load_decoder, load_sam

    load_decoder(load_sam(config.sam.model_type, sam), decoder)


def _versions(workspace: Workspace) -> dict[str, str]:
    path = workspace.run / "environment.json"
    if not path.is_file():
        return package_versions()
    environment = read_environment(path)
    return environment.packages | {
        "epsam": environment.epsam,
        "commit": environment.commit,
        "python": environment.python,
    }


def _write(target: Path, parts: dict[str, WeightsSource], record: ModelRecord) -> None:
    from safetensors.torch import save_file

    from epsam.runtime.checkpoints import load_tensors, load_weights
    from epsam.runtime.weights_format import unwrap

    tensors: dict[str, Any] = {}
    for part, source in parts.items():
        weights = unwrap(load_tensors(source)) if part == "sam" else load_weights(source)
        tensors |= {f"{part}.{name}": tensor.contiguous() for name, tensor in weights.items()}
    with atomic(target) as temporary:
        save_file(tensors, temporary, {KEY: record.model_dump_json()})
        if target.exists() and (not target.is_file() or sha256(target) != sha256(temporary)):
            raise StateError(f"{target} is there and is another file; move it away, or choose another name")
