"""SAM's frozen image encoder over batches of patches."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from epsam.errors import CheckpointError
from epsam.runtime.device import Hardware


def to_input(image: np.ndarray, side: int) -> torch.Tensor:
    """A patch (H, W, 3) uint8 RGB of any size, scaled so that its longer side is `side`: (3, h, w) uint8.

    `side` is the side of SAM's input, `sam.image_encoder.img_size`.
    """
    scaled = ResizeLongestSide(side).apply_image(image)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def encode(sam: Sam, images: Sequence[torch.Tensor], hardware: Hardware) -> torch.Tensor:
    """Embeddings (N, C, h, w) float16, on the device, of images (3, h, w) uint8 from `to_input`.

    Raises CheckpointError when they are not finite (weights that do not suit float16).
    """
    with torch.inference_mode(), hardware.autocast_prediction():
        inputs = torch.stack([sam.preprocess(image.to(hardware.device).float()) for image in images])
        embeddings = sam.image_encoder(inputs).half()
    if not torch.isfinite(embeddings).all():
        raise CheckpointError("SAM's encoder gives values beyond float16 for these patches; check sam.checkpoint")
    return embeddings


def encoder_hash(sam: Sam) -> str:
    """Hash of the encoder's weights and of the normalisation before it, 32 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in [*sam.image_encoder.state_dict().items(), ("mean", sam.pixel_mean), ("std", sam.pixel_std)]:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
