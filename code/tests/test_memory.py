"""Out of GPU memory: the batch is halved and the work goes on."""

import pytest
import torch

from epsam.errors import EpsamError
from epsam.runtime.memory import BatchSize


def _step(limit):
    def step(size):
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    return step


def test_the_batch_is_halved_until_it_fits_and_stays_so(caplog):
    batch = BatchSize("encoder", 16)
    assert batch.run(_step(5)) == 4
    assert batch.run(_step(100)) == 4
    assert "encoder: out of GPU memory; continuing with 8 at a time" in caplog.text


def test_a_single_patch_that_does_not_fit_is_our_error():
    with pytest.raises(EpsamError, match="does not hold a single patch"):
        BatchSize("encoder", 2).run(_step(0))
