"""The precision of a training that goes on, which its results depend on."""

from typing import Literal

import torch

from epsam.runtime.device import name_of
from epsam.runtime.log import logger

PrecisionName = Literal["float32", "bfloat16", "float16"]


def resumed_precision(what: str, saved: PrecisionName, own: torch.dtype) -> torch.dtype:
    """The precision in which a training goes on that was trained in `saved`, on a device that takes `own` by itself.

    That of the state, so that another device ends as the first would have. Low precision that this device does not choose for
    itself it may compute slowly or not at all: then its own is taken, with a warning.
    """
    precision: torch.dtype = getattr(torch, saved)
    if precision in (torch.float32, own):
        return precision
    logger.warning(
        f"{what}: was trained in {saved} so far and goes on in {name_of(own)}, which is this device's: its results differ "
        "from those of one device"
    )
    return own
