"""Class activation maps on disk."""

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from epsam.cam.activation_map import ActivationMap
from epsam.errors import DataError
from epsam.runtime.files import atomic

NOT_ZIP = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError)
"""What NumPy lets through of a file that is no npz, or of an array whose header cannot be parsed."""


def save_cams(path: Path, cams: Mapping[str, ActivationMap]) -> None:
    """Write maps by name, all of one shape (h, w), as npz with `names`, `maps` and `thresholds`, atomically."""
    maps = np.stack([cam.values for cam in cams.values()]) if cams else np.zeros((0, 0, 0))
    thresholds = np.array([cam.threshold for cam in cams.values()], np.float64)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream, names=np.array(list(cams), dtype=np.str_), maps=maps.astype(np.float32), thresholds=thresholds
        )


def load_cams(path: Path) -> dict[str, ActivationMap]:
    """Maps by patch name. Raises DataError when the file is missing, damaged or does not hold what `save_cams` writes."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            names, maps, thresholds = saved["names"], saved["maps"], saved["thresholds"]
        _check_columns(names, maps, thresholds)
        return {
            name: ActivationMap(values, threshold)
            for name, values, threshold in zip(names.tolist(), maps, thresholds.tolist(), strict=True)
        }
    except FileNotFoundError:
        raise DataError(f"{path}: no maps here; run the stage initial-masks") from None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        OverflowError,
        RuntimeError,
        MemoryError,
        TypeError,
        *NOT_ZIP,
    ) as error:
        raise DataError(
            f"{path}: not readable as maps ({' '.join(str(error).split())[:160]}); the stage "
            "initial-masks writes it again (./train.sh with --from initial-masks)"
        ) from None


def _check_columns(names: np.ndarray, maps: np.ndarray, thresholds: np.ndarray) -> None:
    """Raise ValueError when the arrays of a file of maps are not what they should be."""
    if not all(isinstance(array, np.ndarray) for array in (names, maps, thresholds)):
        raise ValueError("a part of it is not an array")
    count = len(names) if names.ndim == 1 else -1
    if names.dtype.kind != "U" or maps.dtype != np.float32 or thresholds.dtype != np.float64:
        raise ValueError(
            f"types {names.dtype}, {maps.dtype}, {thresholds.dtype}; they should be text, float32, float64"
        )
    if maps.ndim != 3 or len(maps) != count or thresholds.shape != (count,):
        raise ValueError(
            f"shapes {names.shape}, {maps.shape}, {thresholds.shape} of names, maps and thresholds do not fit"
        )
    if len(set(names.tolist())) != count:
        raise ValueError("a name occurs twice")
    for what, values in (("maps", maps), ("thresholds", thresholds)):
        if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
            raise ValueError(f"{what} are not from 0 to 1")
