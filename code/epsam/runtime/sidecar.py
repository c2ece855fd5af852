"""Settings as one level of keys, and the file beside a checkpoint that holds them; without torch, so quick to import."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epsam.errors import CheckpointError
from epsam.runtime.files import read_object
from epsam.runtime.model_file import PackedWeights, WeightsSource, read_model_record


def sidecar_path(path: Path) -> Path:
    """`<checkpoint>.json`."""
    return path.with_name(path.name + ".json")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"sam": {"views": 4}} becomes {"sam.views": 4}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def read_metadata(path: WeightsSource) -> dict[str, Any]:
    """The metadata of weights: `settings`, `sha256`, `mpp` and perhaps `encoder`; empty when there is none.

    It lies beside a checkpoint, or in the model file, whose parts have no `sha256` of their own.
    """
    if isinstance(path, PackedWeights):
        return read_model_record(path.file).model_dump(include={"settings", "mpp", "encoder"})
    file = sidecar_path(path)
    metadata = read_object(file) if file.is_file() else {}
    if not isinstance(metadata.get("settings", {}), dict):
        raise CheckpointError(f"{file}: does not hold the settings of a checkpoint; copy it again or delete it")
    return metadata


def trained_mpp(metadata: Mapping[str, Any]) -> float | None:
    """um per pixel of the patches that weights were trained on, from their `read_metadata`; None: not known.

    Raises CheckpointError when it is no number.
    """
    mpp = metadata.get("mpp")
    if mpp is None:
        return None
    if isinstance(mpp, bool) or not isinstance(mpp, (int, float)) or not 0 < mpp < 1000:
        raise CheckpointError("the .json beside the weights has an `mpp` that is no resolution; copy it again")
    return float(mpp)
