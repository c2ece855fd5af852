"""ImageNet weights: torchvision's ResNets, and the EfficientNet-Lite0 that comes as a Python package."""

from pathlib import Path
from typing import Literal

import torch

from epsam.classifier.backbone import Backbone
from epsam.classifier.building import check_fit
from epsam.classifier.resnet import ResNetADL
from epsam.runtime.checkpoints import load_tensors
from epsam.runtime.downloads import fetch, packaged_weights
from epsam.runtime.weights_format import unwrap

MEAN = torch.tensor([0.485, 0.456, 0.406])
SPREAD = torch.tensor([0.229, 0.224, 0.225])
"""torchvision's ResNets take (RGB - MEAN) / SPREAD, RGB in [0, 1]."""
PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
"""Parts of a block, by their names in the package's file and here."""
ENDS = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}


def initialise(model: Backbone, init: Literal["random", "imagenet"] | Path, folder: Path) -> None:
    """Give `model` its first weights: leave it random, or take those of ImageNet, or such a file by its path.

    A ResNet's are torchvision's, from `folder` (fetched when not there); EfficientNet-Lite0's come with a Python
    package. The last layer stays random. Raises CheckpointError when they cannot be had or are of another network.
    """
    if init == "random":
        return
    path = _imagenet(model, folder) if init == "imagenet" else Path(init)
    channels = model.input_weight().shape[1]
    rename = from_torchvision if isinstance(model, ResNetADL) else from_package
    weights = rename(unwrap(load_tensors(path)), channels)
    weights |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    check_fit(model, weights, path)
    model.load_state_dict(weights)


def _imagenet(model: Backbone, folder: Path) -> Path:
    return fetch(f"resnet{model.depth}", folder) if isinstance(model, ResNetADL) else packaged_weights()


def from_torchvision(weights: dict[str, torch.Tensor], channels: int) -> dict[str, torch.Tensor]:
    """torchvision's ResNet weights under the names of ResNetADL, for RGB in [0, 1], without the last layer.

    In layer3 and layer4 the blocks after the first move up by one, past the ADL. torchvision's input is (RGB - MEAN) /
    SPREAD; the published network's is RGB, so both go into the first convolution and the mean of its normalisation:
    the same answer, but for the zeros beyond the border. Of 4 input `channels` the fourth filter is the mean of the three.
    """
    renamed = {_shifted(name): tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    first, mean = renamed.get("conv1.weight"), renamed.get("bn1.running_mean")
    if first is not None and mean is not None and first.shape[1] == 3:
        first = first / SPREAD[:, None, None]
        renamed["bn1.running_mean"] = mean + torch.einsum("ocij,c->o", first, MEAN)
        renamed["conv1.weight"] = _widened(first, channels)
    return renamed


def from_package(weights: dict[str, torch.Tensor], channels: int) -> dict[str, torch.Tensor]:
    """The packaged weights of EfficientNet-Lite0 under the names of EfficientNetLite0, without the last layer."""
    renamed = {_ours(name): tensor for name, tensor in weights.items() if not name.startswith("_fc.")}
    if "stem.conv.weight" in renamed:
        renamed["stem.conv.weight"] = _widened(renamed["stem.conv.weight"], channels)
    return renamed


def _widened(first: torch.Tensor, channels: int) -> torch.Tensor:
    """The first convolution's weight with a fourth input channel, the mean of the three, where `channels` is 4."""
    return torch.cat([first, first.mean(dim=1, keepdim=True)], dim=1) if (first.shape[1], channels) == (3, 4) else first


def _shifted(name: str) -> str:
    layer, _, rest = name.partition(".")
    index, _, entry = rest.partition(".")
    if layer in ("layer3", "layer4") and index.isdigit() and int(index) >= 1:
        return f"{layer}.{int(index) + 1}.{entry}"
    return name


def _ours(name: str) -> str:
    """`_blocks.3._bn1.bias` as `blocks.3.depthwise.norm.bias`."""
    words = name.split(".")
    if words[0] == "_blocks" and len(words) == 4 and words[2] in PARTS:
        return f"blocks.{words[1]}.{PARTS[words[2]]}.{words[3]}"
    return ".".join([ENDS.get(words[0], words[0]), *words[1:]])
