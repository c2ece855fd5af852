"""EP-SAM: tumour segmentation of H&E whole-slide images from patch labels, by way of CAMs and SAM.

What a script or notebook imports. Each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from epsam.api import train
    from epsam.inference.trained_model import TrainedModel, load_model
    from epsam.slides.annotation_file import load_annotation
    from epsam.slides.reader import open_slide

__all__ = ["TrainedModel", "__version__", "load_annotation", "load_model", "open_slide", "train"]

_HOMES = {
    "TrainedModel": "epsam.inference.trained_model",
    "load_annotation": "epsam.slides.annotation_file",
    "load_model": "epsam.inference.trained_model",
    "open_slide": "epsam.slides.reader",
    "train": "epsam.api",
}
"""Modules of the names, so that `import epsam` loads none of them, nor torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
