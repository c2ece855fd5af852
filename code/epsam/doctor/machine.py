"""Checks of Python, torch, GPU, memory, disk and readers."""

import platform
import shutil
from importlib import metadata
from pathlib import Path

import openslide

from epsam.config import Config
from epsam.doctor import Check
from epsam.doctor.estimate import disk_bytes

GIB = 2**30
NEEDED_GIB = {"8gb": 7.0, "12gb": 11.0, "24gb": 22.0}
PASCAL = (
    "cards before Volta (TITAN Xp, GTX 10xx) need wheels for CUDA 12.6, last built for torch 2.14: "
    ".venv/bin/pip install 'torch<2.15' torchvision --index-url https://download.pytorch.org/whl/cu126"
)


def check_python() -> Check:
    """The interpreter."""
    return Check("Python", "ok", platform.python_version())


def check_torch() -> Check:
    """Torch and torchvision import and belong together."""
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        found = ", ".join(f"{name} {_version(name)}" for name in ("torch", "torchvision"))
        return Check("torch", "error", f"{found} do not work together ({reason})",
                     "delete .venv and start again, so that a matching pair is installed")
    return Check("torch", "ok", f"torch {torch.__version__}, torchvision {torchvision.__version__}")


def check_gpu(config: Config) -> Check:
    """A GPU that the installed torch has kernels for, with the memory of the profile."""
    import torch

    if config.profile == "cpu" or not torch.cuda.is_available():
        return _without_gpu(config)
    properties = torch.cuda.get_device_properties(0)
    built_for = torch.cuda.get_arch_list()
    capability = f"sm_{properties.major}{properties.minor}"
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:80]
        return Check("GPU", "error", f"{properties.name} ({capability}) cannot run this torch, which is built for "
                     f"{', '.join(built_for)} ({reason})", PASCAL)
    free, total = (n / GIB for n in torch.cuda.mem_get_info())
    message = f"{properties.name} ({capability}), {free:.1f} of {total:.1f} GiB free"
    needed = NEEDED_GIB.get(config.profile, 7.0)
    if free < needed:
        return Check("GPU", "warning", f"{message}; this profile wants {needed:.0f} GiB",
                     "stop what else uses it (nvidia-smi lists it), or set profile: 8gb")
    return Check("GPU", "ok", message)


def _without_gpu(config: Config) -> Check:
    import torch

    threads = torch.get_num_threads()
    if config.sam.model_type == "demo":
        return Check("GPU", "ok", f"none used; {threads} CPU threads do for the demo's small SAM")
    days = "SAM's encoder takes 5 to 15 s a patch and view on a CPU, ResNet-50 about as much: days for a full data set"
    return Check("GPU", "warning", f"none that torch can use; {days}", f"run on a machine with a GPU; {PASCAL}")


def check_disk(config: Config, folder: Path) -> Check:
    """Room for patches, embeddings and weights."""
    free, needed = shutil.disk_usage(folder).free, disk_bytes(config)
    message = f"{free / GIB:.1f} GiB free, about {needed / GIB:.1f} GiB will be used"
    if free < needed:
        return Check("disk", "error", message, "make room, lower sam.views (each view keeps every training patch once "
                     "more), or set sam.embeddings=off")
    return Check("disk", "ok" if free > 1.2 * needed else "warning", message, "little will be left")


def check_readers(config: Config) -> Check:
    """OpenSlide, and ASAP where it is asked for or found."""
    from epsam.slides.asap import find_asap

    message = f"OpenSlide {openslide.__library_version__}"
    asap = find_asap(config.slides.asap_path)
    if asap is None and config.slides.reader == "asap":
        return Check("readers", "error", f"{message}; ASAP's multiresolutionimageinterface cannot be imported under "
                     f"Python {platform.python_version()}",
                     "set slides.reader=openslide, or slides.asap_path to ASAP's bin folder and use its Python")
    return Check("readers", "ok", f"{message}, ASAP {'found' if asap else 'not found (not needed)'}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
