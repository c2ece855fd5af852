"""Out of GPU memory: the batch is halved and the work goes on."""

import dataclasses
import runpy
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch

from epsam.classifier.train_step import LabelLoss, TrainStep
from epsam.errors import EpsamError, SlideError
from epsam.runtime.device import choose_hardware
from epsam.runtime.failures import guard
from epsam.runtime.memory import BatchSize
from epsam.runtime.ranks import Ranks

FULL = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.80 GB, max allowed: 18.13 GB)"),
]


def _step(limit, error=FULL[0]):
    def step(size):
        if size > limit:
            raise error
        return size

    return step


@pytest.mark.parametrize("error", FULL, ids=["PyTorch", "cuDNN", "cuBLAS", "MPS"])
def test_the_batch_is_halved_until_it_fits_and_stays_so(caplog, error):
    batch = BatchSize("encoder", 16)
    assert batch.run(_step(5, error)) == 4
    assert batch.run(_step(100)) == 4
    assert "encoder: out of GPU memory; continuing with 8 at a time" in caplog.text


def test_a_shared_micro_batch_that_does_not_fit_is_our_error():
    """The other processes wait inside the same micro-batch: it cannot be done again in smaller parts."""

    class Full(torch.nn.Linear):
        def forward(self, images):
            raise FULL[0]

    hardware = dataclasses.replace(choose_hardware("cpu"), ranks=Ranks(1, 2))
    model = Full(3, 1)
    learner = TrainStep(model, torch.optim.SGD(model.parameters()), LabelLoss(None), hardware, batch=6)
    share = learner.share(range(6))
    assert share.indices == [3, 4, 5]
    with pytest.raises(EpsamError, match=r"the GPU of process 1 of 2 does not hold 3 patches.*profile=8gb"):
        learner.step(torch.zeros(3, 3), torch.zeros(3), share)


def test_a_single_patch_that_does_not_fit_is_our_error():
    with pytest.raises(EpsamError, match="does not hold a single patch"):
        BatchSize("encoder", 2).run(_step(0))


def test_other_errors_are_raised_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"):
        BatchSize("encoder", 16).run(_step(5, RuntimeError("shapes do not fit")))


def test_a_broken_gpu_is_not_blamed_on_the_patch_before_pytorch_2_8_either(monkeypatch):
    monkeypatch.delattr(torch, "AcceleratorError", raising=False)
    with pytest.raises(RuntimeError, match="illegal memory access"), guard():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(SlideError, match="shapes"), guard(Path("patch.png")):
        raise RuntimeError("shapes do not fit")


def test_the_memory_of_a_gpu_is_estimated_without_one():
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "gpu_memory.py"))
    peak_gib = benchmark["peak_gib"]
    assert peak_gib(lambda: lambda: torch.ones(2**18, 2**10) + 1) == 2
    options = Namespace(size=128, depth=18, model="demo")
    four, sixteen = (peak_gib(partial(benchmark["train_classifier"], options, n, "float32")) for n in (4, 16))
    assert 1 < sixteen / four < 4
