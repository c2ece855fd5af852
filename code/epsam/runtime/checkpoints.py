"""Weights on disk: a flat state dict, and beside it a JSON file with the settings they belong to."""

import io
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from epsam.errors import CheckpointError
from epsam.runtime.files import atomic, sha256, write_json
from epsam.runtime.finite import first_non_finite
from epsam.runtime.model_file import PackedWeights, WeightsSource, load_packed
from epsam.runtime.old_weights import keep_old_weights
from epsam.runtime.sidecar import flatten, read_metadata, sidecar_path
from epsam.runtime.text import listed
from epsam.runtime.weights_format import NUMPY_NUMBERS, not_loaded, unwrap, what_it_is


def save_weights(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    encoder: str = "",
    mpp: float | None = None,
) -> None:
    """Write `weights` to `path` and `settings` (nested or flat; with the weights' hash) beside it, atomically.

    The settings are those of the whole run, `settings_for_weights(config)`, so that inference finds them all.
    `mpp`: um per pixel of the training patches, None where it is not known; see `sidecar.trained_mpp`.
    For a decoder, the hash of the SAM `encoder` that it was trained on is written too. Other weights
    of that name are renamed first.
    """
    with atomic(path) as temporary:
        write_tensors(temporary, {name: tensor.detach().cpu() for name, tensor in weights.items()})
        digest = sha256(temporary)
        if path.is_file() and sha256(path) != digest:
            keep_old_weights(path)
        # Before the weights get their name: weights that exist have their settings beside them.
        metadata = {"settings": flatten(settings), "sha256": digest, "mpp": mpp} | (
            {"encoder": encoder} if encoder else {}
        )
        write_json(sidecar_path(path), metadata)


def copy_weights(source: Path, target: Path) -> None:
    """Copy weights and the settings beside them, atomically; other weights of the name `target` are renamed first."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)
        if target.is_file() and sha256(target) != sha256(temporary):
            keep_old_weights(target)
        with atomic(sidecar_path(target)) as settings:  # before the weights get their name, as in save_weights
            shutil.copyfile(sidecar_path(source), settings)


def load_weights(path: WeightsSource, expected: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Read a state dict, unwrapped; with a settings file beside it, compare its hash and the settings in `expected`.

    Raises CheckpointError when the file is missing or damaged, is not the one that the settings were written for,
    or was trained with other settings (nested or flat).
    """
    weights = unwrap(load_tensors(path))
    metadata = read_metadata(path)
    if isinstance(path, Path) and "sha256" in metadata and metadata["sha256"] != sha256(path):
        raise CheckpointError(
            f"{path} is not the file that {sidecar_path(path).name} was written for (its SHA-256 is "
            "another). Copy both files again; or, if these weights are meant, delete the .json"
        )
    saved = metadata.get("settings", {})
    wrong = [
        f"{key} is {saved[key]!r} there, {value!r} here"
        for key, value in flatten(expected or {}).items()
        if key in saved and saved[key] != value
    ]
    if wrong:
        raise CheckpointError(
            f"{path} was trained with other settings: {'; '.join(wrong)}. "
            "Use the settings it was trained with, or train again"
        )
    return weights


def mismatch(weights: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> str:
    """Entries of `weights` that a model with the entries `expected` cannot take, in one line; empty when all fit."""
    shapes = [
        f"{name} is {tuple(getattr(weights[name], 'shape', ()))} there, {tuple(tensor.shape)} here"
        for name, tensor in expected.items()
        if name in weights and getattr(weights[name], "shape", None) != tensor.shape
    ]
    # Torch would cast these: the imaginary part of complex numbers goes, integers of a quantised model become weights.
    types = [
        f"{name} is {weights[name].dtype} there, {tensor.dtype} here"
        for name, tensor in expected.items()
        if isinstance(weights.get(name), torch.Tensor)
        and weights[name].is_floating_point() != tensor.is_floating_point()
    ]
    missing = [name for name in expected if name not in weights]
    unknown = [str(name) for name in weights if name not in expected]
    return "; ".join(
        f"{len(names)} {what}: {listed(names, 2)}"
        for what, names in (
            ("other shapes", shapes),
            ("other types", types),
            ("missing", missing),
            ("unknown", unknown),
        )
        if names
    )


def save_tensors(path: Path, value: Mapping[str, Any]) -> None:
    """torch.save under a temporary name, then rename; the same tensors give the same bytes."""
    with atomic(path) as temporary:
        write_tensors(temporary, value)


def write_tensors(path: Path, value: Mapping[str, Any]) -> None:
    """torch.save by way of memory: given a path it would write that into the file, and a full disk it cannot name."""
    stream = io.BytesIO()
    torch.save(dict(value), stream)
    path.write_bytes(stream.getbuffer())


def content_hash(path: WeightsSource) -> str:
    """SHA-256 of the file that weights are in."""
    return sha256(path.file if isinstance(path, PackedWeights) else path)


def load_tensors(path: WeightsSource) -> dict[str, Any]:
    """torch.load of tensors and plain values only; raises CheckpointError for anything else, and for NaN or infinity."""
    if isinstance(path, PackedWeights):
        packed = load_packed(path)
        return _finite(path, packed, first_non_finite(packed))
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder' if path.is_dir() else 'no such checkpoint'}")
    try:
        if why := not_loaded(path):
            raise CheckpointError(f"{path} {why}")
        value = _load(path)
        bad = first_non_finite(value) if isinstance(value, dict) else None
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001  torch raises many kinds for a damaged or hostile file
        raise CheckpointError(f"{path} {what_it_is(path, str(error))}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a dictionary of weights")
    return _finite(path, value, bad)


def _finite(path: WeightsSource, value: dict[str, Any], bad: str | None) -> dict[str, Any]:
    """`value`; raises CheckpointError for its entry `bad`, which holds NaN or infinity."""
    if bad is not None:
        raise CheckpointError(
            f"{path}: the entry {bad} holds values that are not finite (NaN or infinite); these weights "
            "are damaged or come from a training that failed. Copy or fetch them again, or train again"
        )
    return value


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "numpy" not in str(error) or not hasattr(torch.serialization, "safe_globals"):  # from torch 2.5 on
            raise
    with torch.serialization.safe_globals(NUMPY_NUMBERS):
        return torch.load(path, map_location="cpu", weights_only=True)
