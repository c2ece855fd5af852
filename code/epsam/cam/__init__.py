"""Class activation maps and the masks cut from them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsam.cam.activation import compute_cams

__all__ = ["compute_cams"]


def __getattr__(name: str) -> Any:
    if name == "compute_cams":  # loaded on first use: the report reads maps without torch
        from epsam.cam.activation import compute_cams

        return compute_cams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
