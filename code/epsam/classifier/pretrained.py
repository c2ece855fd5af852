"""ImageNet weights of torchvision's ResNets, put into a ResNetADL."""

from pathlib import Path
from typing import Literal

import torch

from epsam.classifier.resnet import ResNetADL, check_fit
from epsam.runtime.fitting import load_tensors
from epsam.runtime.weights import fetch


def initialise(model: ResNetADL, init: Literal["random", "imagenet"] | Path, folder: Path) -> None:
    """Give `model` its first weights: leave it random, or take torchvision's from `folder` (fetched when not
    there) or from the file `init`. Raises CheckpointError when they cannot be had or are of another depth."""
    if init == "random":
        return
    path = fetch(f"resnet{model.depth}", folder) if init == "imagenet" else Path(init)
    weights = from_torchvision(load_tensors(path), model.conv1.weight.shape[1])
    weights |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    check_fit(model, weights, path)
    model.load_state_dict(weights)


def from_torchvision(weights: dict[str, torch.Tensor], channels: int) -> dict[str, torch.Tensor]:
    """torchvision's ResNet weights under the names of ResNetADL, without the last layer.

    In layer3 and layer4 the blocks after the first move up by one, past the ADL; of 4 input `channels` the
    fourth filter of the first convolution is the mean of the three.
    """
    renamed = {_shifted(name): tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    first = renamed.get("conv1.weight")
    if first is not None and channels == 4 and first.shape[1] == 3:
        renamed["conv1.weight"] = torch.cat([first, first.mean(dim=1, keepdim=True)], dim=1)
    return renamed


def _shifted(name: str) -> str:
    layer, _, rest = name.partition(".")
    index, _, entry = rest.partition(".")
    if layer in ("layer3", "layer4") and index.isdigit() and int(index) >= 1:
        return f"{layer}.{int(index) + 1}.{entry}"
    return name
