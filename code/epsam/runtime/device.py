"""The device at hand and the settings that follow from it."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from epsam.runtime.log import logger

PROFILES = {
    # profile: classifier micro-batch, CAM batch (images, each in 4 rotations), encoder batch, decoder micro-batch
    "cpu": (16, 8, 2, 16),
    "8gb": (4, 4, 1, 4),
    "12gb": (8, 8, 2, 8),
    "24gb": (16, 16, 8, 32),
}
"""Hardware to settings; the effective batch of the config is kept by accumulating micro-batches. Batch normalisation and ADL see
one micro-batch at a time: the classifier and the student learn a little differently on another profile."""


@dataclass(frozen=True)
class Hardware:
    """Device and batch sizes of a run."""

    device: torch.device
    profile: str
    classifier_batch: int
    cam_batch: int
    encoder_batch: int
    decoder_batch: int
    precision: torch.dtype
    """bfloat16 on Ampere or later and on CPUs with instructions for it, else float32 (float16 is slow on Pascal)."""

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last

    def autocast(self):
        """Context of the device's best precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)


def choose_hardware(profile: str = "auto") -> Hardware:
    """Settings for `profile`; `auto` takes the GPU's memory, or the CPU where there is no GPU."""
    if profile != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda")
        properties = torch.cuda.get_device_properties(device)
        if profile == "auto":
            profile = profile_for(properties.total_memory)
        precision = torch.bfloat16 if properties.major >= 8 else torch.float32
        name = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    else:
        if profile not in ("auto", "cpu"):
            logger.warning(f"profile {profile}: no GPU that torch can use was found; continuing with the CPU")
        device, profile = torch.device("cpu"), "cpu"
        precision = torch.bfloat16 if _cpu_computes_bfloat16() else torch.float32
        name = f"CPU, {torch.get_num_threads()} threads"
    logger.info(f"device: {name}; profile {profile}, {name_of(precision)}")
    return Hardware(device, profile, *PROFILES[profile], precision)


def name_of(precision: torch.dtype) -> str:
    """The name without PyTorch's own, such as bfloat16."""
    return str(precision).removeprefix("torch.")


def profile_for(gpu_bytes: int) -> str:
    """The profile for a GPU of this memory."""
    gib = gpu_bytes / 2**30
    return "24gb" if gib > 20 else "12gb" if gib > 10 else "8gb"


def _cpu_computes_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (three times faster here; without, it is slower)."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))
