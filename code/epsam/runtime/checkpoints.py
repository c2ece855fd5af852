"""Weights on disk: a flat state dict, and beside it a JSON file with the settings they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from epsam.errors import CheckpointError
from epsam.runtime.files import atomic, sha256, write_json
from epsam.runtime.fitting import load_tensors, write_tensors
from epsam.runtime.old_weights import keep_old_weights
from epsam.runtime.settings import flatten, read_note, settings_file


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any], encoder: str = "") -> None:
    """Write `weights` to `path` and `settings` (nested or flat; with the weights' hash) beside it, atomically.

    The settings are those of the whole run, `settings_for_weights(config)`, so that inference finds them all.
    A decoder also notes the hash of the SAM `encoder` it was trained on. Other weights of that name are renamed first.
    """
    with atomic(path) as temporary:
        write_tensors(temporary, {name: tensor.detach().cpu() for name, tensor in weights.items()})
        digest = sha256(temporary)
        if path.is_file() and sha256(path) != digest:
            keep_old_weights(path)
        # Before the weights get their name: weights that exist have their settings beside them.
        note = {"settings": flatten(settings), "sha256": digest} | ({"encoder": encoder} if encoder else {})
        write_json(settings_file(path), note)


def load_weights(path: Path, expected: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Read a state dict; with a settings file beside it, compare its hash and the settings in `expected` first.

    Raises CheckpointError when the file is missing or damaged, is not the one that the settings were written for,
    or was trained with other settings (nested or flat).
    """
    weights = load_tensors(path)
    note = read_note(path)
    if "sha256" in note and note["sha256"] != sha256(path):
        raise CheckpointError(f"{path} is not the file that {settings_file(path).name} was written for (its SHA-256 is "
                              "another). Copy both files again; or, if these weights are meant, delete the .json")
    saved = note.get("settings", {})
    wrong = [f"{key} is {saved[key]!r} there, {value!r} here" for key, value in flatten(expected or {}).items()
             if key in saved and saved[key] != value]
    if wrong:
        raise CheckpointError(f"{path} was trained with other settings: {'; '.join(wrong)}. "
                              "Use the settings it was trained with, or train again")
    return weights
