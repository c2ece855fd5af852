"""What is tried on the pretended GPU beside whole stages; each runs in the process of on_pretended_gpu.py."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder

from epsam.classifier.backbone import Backbone
from epsam.config.schema import Classifier, Config
from epsam.pipeline import STAGES
from epsam.runtime import device
from epsam.runtime.checkpoints import load_tensors
from epsam.runtime.device import Hardware
from epsam.runtime.log import logger
from epsam.self_test import difference_from_cpu
from epsam.stages.embed import embed
from epsam.stages.finetune import finetune
from epsam.stages.train_classifier import train_classifier
from epsam.workspace import Workspace
from tests import patch_factory, pretended_gpu, sam_factory
from tests.pretended_gpu import TYPE

CASES: dict[str, Callable[[Path], None]] = {}


def case(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CASES[function.__name__] = function
    return function


CARDS = {"TITAN Xp": ("float32", "float32"), "T4": ("float32", "float16"), "A100": ("bfloat16", "bfloat16")}
"""Precision of training and of predictions that is chosen for a card."""


def hardware(card: str = "TITAN Xp") -> Hardware:
    """As chosen for a card, but with so little memory that batches are split."""
    training, predictions = (getattr(torch, name) for name in CARDS[card])
    return Hardware(torch.device(TYPE, 0), "8gb", 4, 4, 4, 2, 2, training, predictions)


@contextmanager
def messages() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        yield found
    finally:
        logger.removeHandler(handler)


@contextmanager
def memory_for(most: int, kind: type[torch.nn.Module], message: str) -> Iterator[None]:
    """Have the GPU's memory hold inputs of `most` patches of modules of a kind, and raise what a library says of more."""

    def check(module: torch.nn.Module, inputs: tuple, keywords: dict) -> None:
        (images, *_) = (*inputs, *keywords.values())
        size = len(keywords.get("sparse_prompt_embeddings", images))
        if isinstance(module, kind) and size > most:
            raise RuntimeError(message)

    handles = []
    original = kind.__init__

    def build(self: torch.nn.Module, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        handles.append(self.register_forward_pre_hook(check, with_kwargs=True))

    kind.__init__ = build  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__init__ = original  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()


@case
def it_refuses_tensors_of_two_devices_and_numpy(_: Path) -> None:
    ours, other = torch.ones(2, 3, device=TYPE), torch.ones(3)
    for mixed in (lambda: ours + other, lambda: ours @ other, lambda: other[ours[0].long()], lambda: ours.add_(other)):
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            mixed()
    with pytest.raises(TypeError, match="to numpy"):
        ours.numpy()
    assert (ours * torch.tensor(2.0))[torch.tensor([0])].tolist() == [[2, 2, 2]]


@case
def its_autocast_is_that_of_cuda(_: Path) -> None:
    image = torch.rand(1, 2, 4, 4, device=TYPE)
    with torch.autocast(TYPE, torch.bfloat16):
        product = image @ image
        found = [product, product.softmax(-1), product.sum(), product.exp(), image.mean(), product + image]
        found.append(torch.nn.functional.grid_sample(product, torch.rand(1, 4, 4, 2, device=TYPE)))
    assert [one.dtype for one in found] == [torch.bfloat16] + [torch.float32] * 6


@case
def a_full_gpu_halves_the_micro_batch_and_training_goes_on(folder: Path) -> None:
    workspace = Workspace(folder, "few")
    patch_factory.make_patches(workspace, {"train": 3, "val": 2, "test": 2}, size=48)
    config = Config(name="few", workers=0, classifier=Classifier(depth=18, epochs=1, batch=6))
    with messages() as said, memory_for(2, Backbone, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"):
        train_classifier(config, workspace, hardware())
    assert "classifier: out of GPU memory; continuing with 2 at a time" in said
    assert any(line.startswith("classifier: batch normalisation and ADL see smaller micro-batches") for line in said)
    assert load_tensors(workspace.state / "classifier.pth")["parts"]["learner"]["micro_batch"] == 2


@case
def a_full_gpu_halves_the_batches_of_encoder_and_decoder(folder: Path) -> None:
    workspace = sam_factory.make_patches(folder)
    config = sam_factory.make_config(folder, sam={"views": 1}, finetune={"epochs": 1})
    full = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    with messages() as said, memory_for(1, ImageEncoderViT, full):
        embed(config, workspace, hardware("A100"))
    assert "embed: out of GPU memory; continuing with 1 at a time" in said
    with messages() as said, memory_for(1, MaskDecoder, full):
        finetune(config, workspace, hardware("A100"))
    assert "round0, decoder: out of GPU memory; continuing with 1 at a time" in said


@contextmanager
def in_place_of_mps() -> Iterator[list[str]]:
    """Have the pretended GPU stand in for Apple's MPS, and no CUDA; gives what is logged."""
    with pytest.MonkeyPatch.context() as patch, messages() as said:
        patch.setattr(device, "_find_mps", lambda: torch.device(TYPE, 0))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield said


@case
def apples_mps_that_computes_as_the_cpu_is_chosen_for_predictions_alone(_: Path) -> None:
    with in_place_of_mps() as said:
        assert device.choose_hardware("auto", self_test=difference_from_cpu).device.type == TYPE
        assert device.choose_hardware("auto").device.type == "cpu"
        assert device.choose_hardware("cpu", self_test=difference_from_cpu).device.type == "cpu"
        assert [stage.name for stage in STAGES if stage.self_test] == ["embed", "initial-masks"]
    assert said[0].startswith("device: Apple's MPS, within ")


@case
def apples_mps_that_errs_leaves_the_cpu(_: Path) -> None:
    right = pretended_gpu._run

    def wrong(func: Any, args: tuple, kwargs: dict) -> Any:
        result = right(func, args, kwargs)
        if func is torch.ops.aten.convolution.default:
            result.held[0] += 1
        return result

    def lacking(func: Any, args: tuple, kwargs: dict) -> Any:
        if func is torch.ops.aten.convolution.default:
            raise NotImplementedError(
                "The operator 'aten::convolution' is not currently implemented for the MPS device."
            )
        return right(func, args, kwargs)

    reasons = []
    for broken in (wrong, lacking):
        with in_place_of_mps() as said, pytest.MonkeyPatch.context() as patch:
            patch.setattr(pretended_gpu, "_run", broken)
            assert device.choose_hardware("auto", self_test=difference_from_cpu).device.type == "cpu"
        reasons.append(said[0])
    assert re.match(r"Apple's MPS is not used, .* \(it differs by \S+ from the CPU, more than 1e-03\)", reasons[0])
    assert "(The operator 'aten::convolution' is not" in reasons[1]
