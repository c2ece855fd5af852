"""Weights on disk: a flat state dict, and beside it a JSON file with the settings they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from epsam.errors import CheckpointError
from epsam.runtime.files import read_json, sha256, write_json
from epsam.runtime.fitting import load_tensors, save_tensors


def settings_file(path: Path) -> Path:
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


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> None:
    """Write `weights` to `path` and `settings` (nested or flat; with the weights' hash) beside it, atomically.

    The settings are those of the whole run, `config.model_dump(mode="json")`, so that inference finds them all.
    """
    save_tensors(path, {name: tensor.detach().cpu() for name, tensor in weights.items()})
    write_json(settings_file(path), {"settings": flatten(settings), "sha256": sha256(path)})


def load_weights(path: Path, expected: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Read a state dict; with a settings file beside it, compare those of `expected` (nested or flat) first.

    Raises CheckpointError when the file is missing or damaged, or was trained with other settings.
    """
    weights = load_tensors(path)
    if expected and settings_file(path).is_file():
        saved = read_json(settings_file(path)).get("settings", {})
        wrong = [f"{key} is {saved[key]!r} there, {value!r} here" for key, value in flatten(expected).items()
                 if key in saved and saved[key] != value]
        if wrong:
            raise CheckpointError(f"{path} was trained with other settings: {'; '.join(wrong)}. "
                                  "Use the settings it was trained with, or train again")
    return weights
