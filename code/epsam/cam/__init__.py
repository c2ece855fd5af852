"""Class activation maps and the masks cut from them."""

from epsam.cam.activation import compute_cams

__all__ = ["compute_cams"]
