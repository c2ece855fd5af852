"""What a file given as weights is when it is none, and the weights inside the wrappings that training programs add."""

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epsam.runtime.placeholders import placeholder

WRAPPERS = ("model_state", "model_state_dict", "state_dict", "model")
"""Keys under which training programs keep the weights, beside an optimizer's state and counters."""
PREFIXES = ("module.", "_orig_mod.", "sam.", "model.")
"""Of every name: of DistributedDataParallel, of torch.compile, of a model that was part of another."""
WEIGHTS_ALONE = (
    ", which may run anything and is not loaded; save the weights alone: torch.save(model.state_dict(), FILE)"
)
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""How files of torch.save begin, from version 1.6 on and before."""
HEAD = 4096
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
NUMPY_SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # its module was renamed in NumPy 2
NUMPY_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
]
"""What torch.load must know to read a NumPy number, such as the best score, beside the weights."""


def not_loaded(path: Path) -> str:
    """Why torch is not asked to load a file, which it would do with a warning or a message of its own; "" where it is."""
    with path.open("rb") as stream:
        head = stream.read(2)
    if head.startswith(PICKLE) and head[1:] != bytes([torch.serialization.DEFAULT_PROTOCOL]):
        return f"is a pickle of another program{WEIGHTS_ALONE}"
    if head != ZIP[:2] or not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        entries = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in entries:
        return f"is a TorchScript program{WEIGHTS_ALONE}"
    return "" if "data.pkl" in entries else "is a zip archive, not weights; unpack it first"


def what_it_is(path: Path, error: str) -> str:
    """Why a file is no weights and what to do about it, from its first bytes and torch's `error`; in one line."""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        return "is empty; make or fetch it again"
    if what := placeholder(head):
        return f"is {what}"
    if text.startswith(b"<"):
        return "is a web page, perhaps that of a sign-in or of the download; download the file itself"
    if text.startswith((b"{", b"[")):
        return "is JSON text, perhaps a server's answer; download the weights again"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**30:
        return "is a safetensors file; save the state dict with torch.save"
    if names := GLOBAL.findall(error):
        return f"holds Python objects ({names[0]}) beside weights{WEIGHTS_ALONE}"
    if not head.startswith((ZIP, PICKLE)):
        return "is no file of torch.save; make or fetch it again"
    if head.startswith(ZIP) and not zipfile.is_zipfile(path):  # its table of contents comes last
        return "is cut off; make or fetch it again"
    reason = "".join(c if c.isprintable() else " " for c in error)
    return f"cannot be loaded as weights ({' '.join(reason.split())[:160]}); make or fetch it again"


def unwrap(weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict of a model, from what a training program saved: without wrapper, prefixes and other entries."""
    inner = [key for key in WRAPPERS if isinstance(weights.get(key), Mapping)]
    if not inner and not _tensors(weights):
        inner = [key for key, value in weights.items() if isinstance(value, Mapping) and _tensors(value)]
        inner = inner if len(inner) == 1 else []
    if inner:
        return unwrap(weights[inner[0]])
    found = _tensors(weights)
    while prefix := next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), ""):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _tensors(weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {str(name): value for name, value in weights.items() if isinstance(value, torch.Tensor)}
