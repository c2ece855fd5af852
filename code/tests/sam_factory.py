"""Small real parts for the SAM phase: a SAM of segment_anything's classes, and patches with maps of their tumour."""

import dataclasses
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from epsam.cam.activation_map import ActivationMap
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams, save_cams
from epsam.config.schema import Config
from epsam.runtime.checkpoints import save_tensors
from epsam.runtime.device import Hardware, choose_hardware
from epsam.runtime.files import write_png
from epsam.runtime.seeds import generator
from epsam.sam.demo_model import build_sam_demo
from epsam.sam.session import SamSession
from epsam.segmenter import segment_stored
from epsam.workspace import Workspace

# The same figures on every machine.
CPU = dataclasses.replace(choose_hardware("cpu"), precision=torch.float32, prediction_precision=torch.float32)
COUNTS = {"train": 8, "val": 3, "test": 3}
SIZE = (96, 128)


def small_sam(input_px: int = 64, width: int = 32, heads: int = 4) -> Sam:
    """Random weights that give logits of some size; the encoder is one block, whatever the decoder's `width`."""
    side = input_px // 16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = Sam(
            ImageEncoderViT(
                img_size=input_px,
                patch_size=16,
                embed_dim=16,
                depth=1,
                num_heads=2,
                mlp_ratio=2,
                out_chans=width,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                window_size=4,
            ),
            PromptEncoder(
                embed_dim=width,
                image_embedding_size=(side, side),
                input_image_size=(input_px, input_px),
                mask_in_chans=16,
            ),
            MaskDecoder(
                transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=64, num_heads=heads),
                transformer_dim=width,
                iou_head_hidden_dim=width,
            ),
        )
    sam.requires_grad_(False)
    for head in sam.mask_decoder.output_hypernetworks_mlps:
        head.layers[-1].weight.mul_(20)
    return sam.eval()


def draw_patch(name: str, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 (H, W, 3) with a purple ellipse of tumour in pink, off the centre, and its mask (H, W) bool."""
    rng, mask = generator(name), np.zeros(size, np.uint8)
    centre = [int(side * rng.uniform(0.25, 0.4)) for side in size[::-1]]
    axes = [int(side * rng.uniform(0.15, 0.3)) for side in size[::-1]]
    cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    image = np.where(mask[..., None] > 0, (90, 40, 140), (230, 170, 200)) + rng.integers(-20, 20, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), mask > 0


def make_patches(root: Path, name: str = "small", sizes: tuple[tuple[int, int], ...] = (SIZE,)) -> Workspace:
    """Patches, true masks, maps (coarse and a little too large) and initial masks under `root`."""
    workspace = Workspace(root, name)
    for split, count in COUNTS.items():
        cams = {}
        for number in range(count):
            patch = f"{split}_x{number}_y0_1"
            image, mask = draw_patch(patch, sizes[number % len(sizes)])
            write_png(workspace.split(split) / "image" / f"{patch}.png", image)
            write_png(workspace.split(split) / "mask" / f"{patch}.png", mask)
            wide = cv2.dilate(mask.astype(np.float32), np.ones((15, 15)))
            values = cv2.resize(cv2.GaussianBlur(wide, (0, 0), 5), (16, 16), interpolation=cv2.INTER_AREA)
            values = values.clip(0, 1)  # resizing rounds to a little above 1
            cams[patch] = ActivationMap(values, make_config().cam.threshold)
        save_cams(workspace.cams(split), cams)
        if split == "train":
            for patch, cam in cams.items():
                size = cv2.imread(str(workspace.split(split) / "image" / f"{patch}.png")).shape[:2]
                write_png(workspace.pseudo_labels(0) / f"{patch}.png", cam_mask(cam, make_config().cam, size))
    weights = workspace.checkpoints / "random.pth"
    if not weights.is_file():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            save_tensors(weights, build_sam_demo().state_dict())
    return workspace


def add_normal_patches(workspace: Workspace, counts: dict[str, int]) -> list[str]:
    """Patches of pink alone, with maps as wrong as those of patches with tumour are right; the names of all."""
    names = []
    for split, count in counts.items():
        cams = load_cams(workspace.cams(split))
        maps = list(cams.values())
        for number in range(count):
            patch = f"{split}_x{number}_y9_0"
            pink = np.array((230, 170, 200)) + generator(patch).integers(-20, 20, (*SIZE, 3))
            write_png(workspace.split(split) / "image" / f"{patch}.png", pink.clip(0, 255).astype(np.uint8))
            cams[patch] = maps[number % len(maps)]
            names.append(patch)
        save_cams(workspace.cams(split), cams)
    return names


def make_config(root: Path = Path(), **sections: dict) -> Config:
    """Settings that suit `make_patches`; `sections` add to them, e.g. sam={"views": 1}."""
    settings = {
        "name": "small",
        "cam": {"layer": "layer4", "percentile": None, "threshold": 0.5, "mask_px": 16, "opening_px": 0},
        "prompts": {"points": 10, "min_box_px": 20},
        "sam": {"model_type": "demo", "checkpoint": str(root / "checkpoints" / "random.pth"), "views": 2},
        "finetune": {"lr": 1e-3, "batch": 4, "epochs": 3},
        "retrain": {"rounds": 1, "ids": 0.2},
    }
    for section, values in sections.items():
        settings[section] = settings.get(section, {}) | values
    return Config.model_validate(settings)


def predict_split(
    config: Config, workspace: Workspace, hardware: Hardware, split: str, decoder: Path | None
) -> dict[str, np.ndarray]:
    """Masks (H, W) bool that a decoder, or SAM's own (None), predicts for the positive patches of a split, by name."""
    session = SamSession(config, workspace, hardware)
    session.use_decoder(decoder)
    found = segment_stored(session, split, session.examples(split))
    return {sample.example.patch.name: mask for sample, mask in found}
