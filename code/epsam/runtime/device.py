"""The device at hand and the settings that follow from it."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from epsam.errors import EpsamError
from epsam.runtime.log import logger
from epsam.runtime.ranks import ALONE, Ranks

PROFILES = {
    # profile: CAM batch (images, each in 4 rotations), encoder batch, decoder micro-batch
    "cpu": (8, 2, 16),
    "8gb": (4, 1, 4),
    "12gb": (8, 2, 8),
    "24gb": (16, 8, 32),
}
"""Hardware to settings; the effective batch of the config is kept by accumulating micro-batches."""
MICRO_BATCHES = {
    # profile: of classifier and student, in float32 and in bfloat16
    "cpu": ((16, 16), (16, 16)),
    "8gb": ((8, 8), (16, 16)),
    "12gb": ((16, 8), (16, 16)),
    "24gb": ((16, 16), (16, 16)),
}
"""The most that fit, by benchmarks/gpu_memory.py at 512 px, up to the published batch of 16. Batch normalisation and ADL see one
micro-batch at a time: the classifier and the student learn a little differently with smaller ones."""

WITHOUT_TENSOR_CORES = re.compile(r"GTX 16|MX[45]50|\bT\d{3,4}\b")
"""Names of Turing cards: GeForce GTX 16xx and MX, T400 to T2000 (not the Tesla T4)."""

MPS_TOLERANCE = 1e-3
"""Most that Apple's MPS may differ from the CPU, in standard deviations of results (`self_test.py`). Another order of additions
in float32 differs by 1e-5 there, float16 by 1e-2, bfloat16 by 1e-1."""


@dataclass(frozen=True)
class Hardware:
    """Device and batch sizes of a run."""

    device: torch.device
    profile: str
    classifier_batch: int
    student_batch: int
    cam_batch: int
    """Of maps at the patch's own size; see `cam_batch_at`."""
    encoder_batch: int
    decoder_batch: int
    precision: torch.dtype
    """Of training, see `precisions_of_gpu`: float32 or bfloat16, whose range needs no scaling of the loss."""
    prediction_precision: torch.dtype
    """Of embeddings, maps and predictions, where nothing is learned: float16 too."""
    ranks: Ranks = ALONE
    """The processes that share the work; each has a device of its own, and batch sizes are those of one device."""

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last

    def cam_batch_at(self, scales: Sequence[float]) -> int:
        """Patches whose maps over `scales` (`cam.scales`) are made at a time: memory grows with the area of the largest."""
        return max(1, int(self.cam_batch / max(1, *scales) ** 2))

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the precision of training."""
        return autocast(self.device, self.precision)

    def autocast_prediction(self) -> AbstractContextManager[object]:
        """Context of the precision of predictions."""
        return autocast(self.device, self.prediction_precision)


SelfTest = Callable[[Hardware], float]
"""How much a device's results differ from the CPU's."""


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Context of a precision, float32 included."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def choose_hardware(profile: str = "auto", ranks: Ranks = ALONE, self_test: SelfTest | None = None) -> Hardware:
    """Settings for `profile`; `auto` takes the GPU's memory, or the CPU where there is no GPU.

    Who only predicts gives a `self_test`, and gets Apple's MPS where there is one that passes it.
    Raises EpsamError when a machine has fewer GPUs than processes.
    """
    if profile != "cpu" and torch.cuda.is_available():
        device = _gpu_of(ranks)
        properties = torch.cuda.get_device_properties(device)
        if profile == "auto":
            profile = profile_for(properties.total_memory)
        precision, for_predictions = precisions_of_gpu(properties.major, properties.name)
        name = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    elif profile != "cpu" and self_test and ranks.count == 1 and (hardware := _choose_mps(profile, self_test)):
        return hardware
    else:
        if profile not in ("auto", "cpu"):
            logger.warning(f"profile {profile}: no GPU that torch can use was found; continuing with the CPU")
        device, profile = torch.device("cpu"), "cpu"
        precision = for_predictions = torch.bfloat16 if _cpu_computes_bfloat16() else torch.float32
        name = f"CPU, {torch.get_num_threads()} threads"
    predicted = f", predictions {name_of(for_predictions)}" if for_predictions != precision else ""
    logger.info(f"device: {name}; profile {profile}, {name_of(precision)}{predicted}")
    micro_batches = MICRO_BATCHES[profile][precision == torch.bfloat16]
    return Hardware(device, profile, *micro_batches, *PROFILES[profile], precision, for_predictions, ranks)


def _gpu_of(ranks: Ranks) -> torch.device:
    """The GPU of this process: with several on a machine, that of its number, or the only one that srun lets it see."""
    if ranks.count == 1:
        return torch.device("cuda")
    here, found = ranks.on_this_machine, torch.cuda.device_count()
    if here >= found and not (found == 1 and "SLURM_GPUS_ON_NODE" in os.environ and "LOCAL_RANK" not in os.environ):
        raise EpsamError(
            f"more processes than GPUs: there are {found} GPUs on this machine and at least {here + 1} processes; start "
            "as many processes as there are GPUs (./train.sh --gpus N)"
        )
    device = torch.device("cuda", min(here, found - 1))
    torch.cuda.set_device(device)
    return device


def _choose_mps(profile: str, self_test: SelfTest) -> Hardware | None:
    """Settings for Apple's MPS, in float32; None, with one line, where there is none that computes as the CPU does."""
    device = _find_mps()
    if device is None:
        return None
    profile = "8gb" if profile == "auto" else profile  # it shares the memory of all programs
    micro_batches = MICRO_BATCHES[profile][0]
    hardware = Hardware(device, profile, *micro_batches, *PROFILES[profile], torch.float32, torch.float32)
    try:
        difference = self_test(hardware)
    except (RuntimeError, TypeError) as error:  # what MPS cannot compute, and float64
        reason = " ".join(str(error).split())[:120]
    else:
        if difference <= MPS_TOLERANCE:
            logger.info(f"device: Apple's MPS, within {difference:.0e} of the CPU; profile {profile}, float32")
            return hardware
        reason = f"it differs by {difference:.0e} from the CPU, more than {MPS_TOLERANCE:.0e}"
    logger.warning(f"Apple's MPS is not used, since it failed its self-test ({reason}); continuing with the CPU")
    return None


def _find_mps() -> torch.device | None:
    return torch.device("mps") if torch.backends.mps.is_available() else None


def precisions_of_gpu(major: int, name: str) -> tuple[torch.dtype, torch.dtype]:
    """The precisions of training and of predictions that suit a GPU, by its compute capability and its name.

    bfloat16 for both from Ampere (8) on. Volta and Turing (7) compute it slowly; float16 is fast in their tensor cores, but
    training would need a scaled loss, and those of Turing without tensor cores give NaN in float16 convolutions
    (https://github.com/pytorch/pytorch/issues/58123). Pascal (6) and older compute float16 slowly.
    """
    if major >= 8:
        return torch.bfloat16, torch.bfloat16
    has_float16 = major == 7 and not WITHOUT_TENSOR_CORES.search(name)
    return torch.float32, torch.float16 if has_float16 else torch.float32


def name_of(precision: torch.dtype) -> str:
    """The name without PyTorch's own, such as bfloat16."""
    return str(precision).removeprefix("torch.")


def profile_for(gpu_bytes: int) -> str:
    """The profile for a GPU of this memory."""
    gib = gpu_bytes / 2**30
    return "24gb" if gib > 20 else "12gb" if gib > 10 else "8gb"


def _cpu_computes_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (three times faster here; without, it is slower)."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


@cache
def cpu_flags() -> frozenset[str]:
    """What Linux says that the CPU can do, such as amx_bf16; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    return frozenset(info.read_text().split()) if info.is_file() else frozenset()
