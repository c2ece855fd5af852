"""Generators seeded by what they are for, so that results do not depend on order or worker count."""

import hashlib

import numpy as np


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the parts, e.g. (config seed, patch name, "train", epoch)."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> np.random.Generator:
    """NumPy generator that depends on the parts alone."""
    return np.random.default_rng(seed_of(*parts))


def torch_generator(*parts: object):
    """CPU `torch.Generator` that depends on the parts alone; torch is imported here because slides/ needs none."""
    import torch

    return torch.Generator().manual_seed(seed_of(*parts))
