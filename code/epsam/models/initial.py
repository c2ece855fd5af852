"""The earlier model that a run starts from, the setting `init_from`."""

from functools import lru_cache
from pathlib import Path

from epsam.config.schema import Config
from epsam.errors import CheckpointError, ConfigError
from epsam.models.find import CLASSIFIER_END, DECODER_END, Model, find_model
from epsam.runtime.files import sha256
from epsam.runtime.model_file import SUFFIX, PackedWeights, WeightsSource
from epsam.runtime.sidecar import read_metadata
from epsam.workspace import Workspace

NETWORK = (
    *("classifier.backbone", "classifier.depth", "classifier.layer3_stride", "classifier.padding"),
    *("classifier.high_frequency", "classifier.frequency_block_px", "sam.model_type"),
)
"""Settings in which a run and the model that it starts from must agree."""


def initial_model(config: Config, workspace: Workspace) -> Model | None:
    """The model of `init_from`; None where it is not set.

    Raises CheckpointError when there is none, or it has no classifier and decoder, ConfigError when it is this run's own
    or of other networks.
    """
    if config.init_from is None:
        return None
    model = _find(config.init_from, workspace)
    if model.classifier is None or model.decoder is None:
        raise CheckpointError(
            f"init_from: {config.init_from} has no {'decoder' if model.classifier else 'classifier'} to start from; name a "
            "model that ./train.sh made"
        )
    if model.classifier == workspace.classifier:
        raise ConfigError(f"init_from: {config.init_from} is this run itself; give the run another `name`")
    _check_networks(config, model.classifier, model.decoder)
    return model


def initial_hashes(config: Config, workspace: Workspace) -> dict[str, str]:
    """What the weights of `init_from` hold, for the record of what a stage depends on; empty where it is not set."""
    model = initial_model(config, workspace)
    parts = (model.classifier, model.decoder, model.student) if model else ()
    hashes = dict.fromkeys(_hash(part) for part in parts if part)
    return {"weights of init_from": " ".join(hashes)} if model else {}


def _find(init_from: str | Path, workspace: Workspace) -> Model:
    if isinstance(init_from, str):
        return find_model(init_from, workspace.checkpoints)
    path = workspace.root / init_from
    if path.suffix == SUFFIX:
        return find_model(str(path.absolute()), workspace.checkpoints)
    if not path.is_dir():
        return find_model(path.name, path.parent)
    starts = [file.name.removesuffix(DECODER_END) for file in sorted(path.glob(f"*{DECODER_END}"))]
    names = [name for name in starts if (path / f"{name}{CLASSIFIER_END}").is_file()]
    if len(names) != 1:
        raise ConfigError(
            f"init_from: {path} holds {len(names)} models with a classifier and a decoder"
            + (f" ({', '.join(names[:5])}); name one, as {path / names[0]}" if names else "")
        )
    return find_model(names[0], path)


def _check_networks(config: Config, *parts: WeightsSource) -> None:
    here = config.model_dump(mode="json")
    for part in parts:
        settings = read_metadata(part).get("settings", {})
        for key in NETWORK:
            section, name = key.split(".")
            if key in settings and settings[key] != here[section][name]:
                raise ConfigError(
                    f"init_from: {part} was trained with {key}: {settings[key]}, this run has {here[section][name]}; "
                    "set it to the same, or start from another model"
                )


def _hash(weights: WeightsSource) -> str:
    file = weights.file if isinstance(weights, PackedWeights) else weights
    stat = file.stat()
    return _hash_of(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _hash_of(file: Path, _size: int, _time_ns: int) -> str:
    """Of the file as it was then: a run asks for each of its stages."""
    return sha256(file)[:12]
