"""Peak memory, and continuing with smaller batches when the GPU's runs out."""

import resource
import sys
from collections.abc import Callable
from typing import TypeVar

from epsam.errors import EpsamError
from epsam.runtime.failures import is_out_of_gpu_memory
from epsam.runtime.log import logger

Result = TypeVar("Result")


def peak_memory_mib(device: str) -> float:
    """Peak memory of this process in MiB: reserved on a GPU (`cuda...`), or resident."""
    if device.startswith("cuda"):
        import torch  # stages that compute nothing do without

        return torch.cuda.max_memory_reserved() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class BatchSize:
    """A batch size that is halved each time it turns out too large for the GPU."""

    def __init__(self, what: str, size: int) -> None:
        self.what = what
        self.size = size

    def run(self, step: Callable[[int], Result]) -> Result:
        """`step(size)`, again with half the size while it runs out of GPU memory.

        `step` must be safe to repeat from its beginning. Raises EpsamError when a batch of one does not fit.
        """
        while True:
            try:
                return step(self.size)
            except RuntimeError as error:
                if not is_out_of_gpu_memory(error):
                    raise
                if self.size == 1:
                    raise EpsamError(
                        f"{self.what}: the GPU's memory does not hold a single patch; free it (nvidia-smi lists what "
                        "uses it), choose a smaller model or patch size, or set profile: cpu"
                    ) from None
            # Outside the except block: the traceback would keep the tensors of the failed step alive.
            self.size //= 2
            _release_cached_memory()
            logger.warning(f"{self.what}: out of GPU memory; continuing with {self.size} at a time")


def _release_cached_memory() -> None:
    """Give back what PyTorch keeps of the GPU's memory for later, so that smaller tensors find room."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
