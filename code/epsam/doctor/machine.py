"""Checks of Python, torch, GPU, memory, disk and readers."""

import errno
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import openslide

import epsam
from epsam.config.schema import Config
from epsam.doctor import Check
from epsam.doctor.resources import which_gpu
from epsam.runs.environment import commit as commit_of_program
from epsam.runs.lock import STALE_S, holder_of
from epsam.runtime.text import duration_text, size_text

GIB = 2**30
NEEDED_GIB = {"8gb": 7.0, "12gb": 11.0, "24gb": 22.0}
OLD_CARD = (
    "Pascal cards (TITAN Xp, GTX 10xx) and older ones need wheels for CUDA 12.6, last built for torch 2.14: install "
    "'torch<2.15' and torchvision by the line for CUDA 12.6 of \"Previous versions\" on pytorch.org, with .venv/bin/pip"
)
NEW_CARD = "the card may be newer than this torch: .venv/bin/pip install --upgrade torch torchvision"
NO_MEMORY = ("failed to map segment", "annot allocate memory")
"""Of what the loader says of a library for which memory is lacking."""
MORE_MEMORY = (
    "give the job more memory; a limit of the shell (`ulimit -v`) counts addresses, and torch takes several GB of them"
)
MAX_CPU_SECONDS = 36 * 3600
"""Of a run on the CPU, above which it is warned of."""
DRIVER = Path("/proc/driver/nvidia/version")


def check_python() -> Check:
    """The interpreter and its packages."""
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.maxsize < 2**32:
        return Check("Python", "error", f"{found}: a 32-bit Python", "PYTHON=/path/to/a/64-bit/python3 ./train.sh")
    if not os.access(sys.prefix, os.W_OK):
        found += f"; {sys.prefix} cannot be written by you: packages can be installed there by its owner alone"
    return Check("Python", "ok", found)


def check_program(root: Path) -> Check:
    """Which copy of the program runs: of `root`, or of another folder whose environment is used here."""
    here, commit = Path(epsam.__file__).parent, commit_of_program()
    found = f"epsam {epsam.__version__}" + (f", commit {commit}" if commit else "") + f", {here}"
    if not os.access(here, os.W_OK):
        found += " (read-only; nothing is written there)"
    expected = root / "code" / "epsam"
    if expected.is_dir() and not expected.samefile(here):
        return Check(
            "program",
            "warning",
            f"{found}, not {expected.resolve()}",
            "delete .venv and start again, so that this folder's code is installed; or ignore this where it is meant",
        )
    return Check("program", "ok", found)


def check_lock(run: Path) -> Check:
    """Nobody else is at work in `runs/<name>`, e.g. another container that shares the folder."""
    if who := holder_of(run):
        return Check(
            "lock",
            "error",
            f"{run} is in use by {who}",
            f"wait for it or stop it; if it is gone, wait {STALE_S:.0f} s or delete {run / 'lock'}",
        )
    return Check("lock", "ok", f"nobody else is at work in {run}")


def check_torch() -> Check:
    """Torch and torchvision import and belong together."""
    try:
        import torch
        import torchvision
    except MemoryError:
        return Check("torch", "error", "torch cannot be loaded for lack of memory", MORE_MEMORY)
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        if any(sign in reason for sign in NO_MEMORY):
            return Check("torch", "error", f"torch cannot be loaded for lack of memory ({reason})", MORE_MEMORY)
        return Check(
            "torch",
            "error",
            f"{_torch_versions()} do not work together ({reason})",
            "delete .venv and start again, so that a matching pair is installed",
        )
    return Check("torch", "ok", f"torch {torch.__version__}, torchvision {torchvision.__version__}")


def check_torch_unused() -> Check:
    """Which torch is installed, without the seconds that it takes to load: for a run that is done."""
    return Check("torch", "ok", f"{_torch_versions()}; not loaded, all stages are done")


def _torch_versions() -> str:
    return ", ".join(f"{name} {_version(name)}" for name in ("torch", "torchvision"))


def check_gpu(config: Config, work: float = 0) -> Check:
    """A GPU that the installed torch has kernels for, with the memory of the profile.

    Without one: how long the CPU takes for `work` floating-point operations, where given.
    """
    import torch

    from epsam.runtime.device import profile_for

    if config.profile == "cpu" or not torch.cuda.is_available():
        return _without_gpu(config, work)
    properties = torch.cuda.get_device_properties(0)
    capability = f"sm_{properties.major}{properties.minor}"
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:
        built_for = torch.cuda.get_arch_list()
        oldest = min((int(re.sub(r"\D", "", name)) for name in built_for), default=0)
        dropped = properties.major * 10 + properties.minor < oldest
        return Check(
            "GPU",
            "error",
            f"{properties.name} ({capability}) cannot run this torch, which is built for "
            f"{', '.join(built_for)} ({' '.join(str(error).split())[:80]})",
            OLD_CARD if dropped else NEW_CARD,
        )
    free, total = (n / GIB for n in torch.cuda.mem_get_info())
    profile = profile_for(properties.total_memory) if config.profile == "auto" else config.profile
    message = (
        f"{properties.name} ({capability}), {free:.1f} of {total:.1f} GiB free, profile {profile}"
        f"{which_gpu(gpu_count(config))}"
    )
    if free < NEEDED_GIB[profile]:
        return Check(
            "GPU",
            "warning",
            f"{message}; the profile needs {NEEDED_GIB[profile]:.0f} GiB",
            "stop what else uses the card (nvidia-smi lists it), or set a smaller profile, e.g. profile=8gb",
        )
    return Check("GPU", "ok", message)


def gpu_count(config: Config) -> int:
    """GPUs that this process could use; 0 where torch cannot be imported."""
    try:
        import torch
    except (ImportError, RuntimeError, OSError):  # `check_torch` says so
        return 0
    return 0 if config.profile == "cpu" else torch.cuda.device_count()


def _without_gpu(config: Config, work: float) -> Check:
    import torch

    seconds = work / _flop_per_second()
    message = f"{torch.get_num_threads()} CPU threads" + (
        f": the run takes about {duration_text(seconds)}" if work else ""
    )
    if config.profile == "cpu":
        return Check("GPU", "ok", f"not used (profile: cpu); {message}")
    if DRIVER.is_file():
        return Check(
            "GPU",
            "warning",
            f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it; {message}",
            f"update the driver, or install wheels for it (see https://pytorch.org); {OLD_CARD}",
        )
    if seconds > MAX_CPU_SECONDS:
        return Check("GPU", "warning", f"none; {message}", "run on a machine with a GPU")
    return Check("GPU", "ok", f"none; {message}")


def _flop_per_second(side: int = 1024, repeats: int = 4) -> float:
    """What the CPU makes of a product of two float32 matrices."""
    import torch

    matrix = torch.ones(side, side)
    matrix @ matrix
    began = time.perf_counter()
    for _ in range(repeats):
        matrix @ matrix
    return repeats * 2 * side**3 / (time.perf_counter() - began)


def check_folders(*folders: Path) -> Check:
    """Files can be written where a run writes them."""
    for folder in folders:
        place = _existing(folder)
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"0")
        except OSError as error:
            fix = (
                "make room on that disk"
                if error.errno == errno.ENOSPC
                else "give yourself the right to write there (chown, chmod), or mount it for writing"
            )
            return Check("folders", "error", f"nothing can be written into {place} ({error.strerror})", fix)
    return Check("folders", "ok", f"{', '.join(str(folder) for folder in folders)} can be written")


def check_disk(most: Mapping[Path, int], least: Mapping[Path, int]) -> Check:
    """Room for what a run has still to write: bytes by folder, as set and with one view of the patches.

    Folders may lie on several disks. With too little room for all views, the stage embed takes fewer.
    """
    disks: dict[int, list[Path]] = {}
    for folder in most:
        disks.setdefault(_existing(folder).stat().st_dev, []).append(folder)
    places = [_existing(folders[0]) for folders in disks.values()]
    free = [shutil.disk_usage(place).free for place in places]
    needed, at_least = (
        [sum(bytes_of[folder] for folder in folders) for folders in disks.values()] for bytes_of in (most, least)
    )
    message = "; ".join(
        f"{size_text(room)} free on the disk of {place.resolve()}, about {size_text(count)} more will be used"
        for place, room, count in zip(places, free, needed, strict=True)
    )
    if _spare(free, at_least) < 0:
        return Check("disk", "error", message, "make room, or set sam.embeddings=off (slow: nothing is kept then)")
    if _spare(free, needed) < 0:
        return Check("disk", "warning", message, "fewer views of each patch will be kept (sam.views); or make room")
    if _spare(free, [1.2 * count for count in needed]) < 0:
        return Check("disk", "warning", message, "little will be left: make room")
    return Check("disk", "ok", message)


def _spare(free: Sequence[float], needed: Sequence[float]) -> float:
    """What is left on the fullest disk."""
    return min(room - count for room, count in zip(free, needed, strict=True))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_readers(config: Config) -> Check:
    """OpenSlide, and ASAP where it is configured or found."""
    from epsam.slides.asap import find_asap

    message = f"OpenSlide {openslide.__library_version__}"
    asap = find_asap(config.slides.asap_path)
    if asap is None and config.slides.reader == "asap":
        return Check(
            "readers",
            "error",
            f"{message}; ASAP's multiresolutionimageinterface cannot be imported under "
            f"Python {platform.python_version()}",
            "set slides.reader=openslide, or slides.asap_path to ASAP's bin folder and use its Python",
        )
    found = f"found at {Path(asap.__file__).parent}" if asap and asap.__file__ else "not found (not needed)"
    return Check("readers", "ok", f"{message}, ASAP {found}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
