"""Checks of what a job may use of its machine: memory, shared memory, open files."""

import multiprocessing
import os
import resource
import shutil
from pathlib import Path, PurePosixPath

import psutil

from epsam.doctor import Check
from epsam.runtime.text import size_text
from epsam.runtime.workers import READER_BYTES

GIB = 2**30
PROCESS_BYTES = 3 * GIB
"""Of the process that trains or predicts: torch, the networks, a batch and its activations."""
SHARED_BYTES_PER_GPU = 64 * 2**20
"""Of /dev/shm, through which NCCL passes gradients between the GPUs of a machine; its own default needs less."""
FILES_PER_WORKER = 16
"""Pipes and semaphores between processes, and files of slides."""
OWN_FILES = 128
"""Libraries, the log, weights."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")


def check_memory(workers: int, embeddings: int = 0) -> Check:
    """Memory that this job may use, against its processes and the embeddings (bytes) that training reads at random."""
    limit, whole = memory_limit(), psutil.virtual_memory().total
    needed = PROCESS_BYTES + workers * READER_BYTES
    message = f"{size_text(min(limit, whole))} of memory" + (" (the limit of this job)" if limit < whole else "")
    if min(limit, whole) < needed:
        return Check(
            "memory",
            "warning",
            f"{message}; {workers} workers and the program itself take up to {size_text(needed)}",
            "start fewer (e.g. workers=2), or give the job more memory (sbatch --mem, docker --memory)",
        )
    if min(limit, whole) < needed + embeddings:
        return Check(
            "memory",
            "warning",
            f"{message}, which do not hold the {size_text(embeddings)} of embeddings: each epoch reads them from the disk",
            "put runs/ on a local SSD, give the job more memory, or keep fewer views (sam.views)",
        )
    return Check("memory", "ok", message)


def memory_limit() -> float:
    """Bytes that the control group of this process, or one above it, allows (SLURM, containers); else infinity."""
    limits = [float("inf")]
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (CGROUPS, "memory.max") if not controllers else (CGROUPS / "memory", "memory.limit_in_bytes")
        place = PurePosixPath(path.lstrip("/"))
        for above in (place, *place.parents):
            file = root / above / name
            if file.is_file() and (text := file.read_text().strip()).isdigit():
                limits.append(int(text))
    return min(limits)


def check_shared_memory(gpus: int) -> Check:
    """Processes can be started, which takes semaphores in /dev/shm, and several GPUs can pass gradients through it."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        return Check(
            "shared memory",
            "error",
            f"{SHARED_MEMORY} cannot be used ({error.strerror}), so no process that reads slides can be started",
            "mount a tmpfs there that you can write to (docker: --shm-size=1g)",
        )
    if not SHARED_MEMORY.is_dir():  # macOS has it elsewhere
        return Check("shared memory", "ok", "can be used")
    free = shutil.disk_usage(SHARED_MEMORY).free
    message = f"{size_text(free)} free in {SHARED_MEMORY}"
    if gpus > 1 and free < gpus * SHARED_BYTES_PER_GPU:
        return Check(
            "shared memory",
            "warning",
            f"{message}; {gpus} GPUs that train together take up to {size_text(gpus * SHARED_BYTES_PER_GPU)}",
            "more of it (docker: --shm-size=1g), or NCCL_SHM_DISABLE=1, which is slower",
        )
    return Check("shared memory", "ok", message)


def check_open_files(workers: int, shards: int = 0) -> Check:
    """The limit of open files, against pipes of the workers and files of embeddings that are open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OWN_FILES + workers * FILES_PER_WORKER + shards
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Check("open files", "ok", f"{soft if soft != resource.RLIM_INFINITY else 'any number'} allowed")
    can_raise = hard == resource.RLIM_INFINITY or hard >= needed
    return Check(
        "open files",
        "warning",
        f"{soft} allowed, up to {needed} will be open at once",
        f"ulimit -n {needed} before the command"
        + ("" if can_raise else f" (the administrator has to allow it: at most {hard} are)")
        + "; or fewer workers",
    )


def which_gpu(count: int) -> str:
    """Which of several GPUs is taken, and how to take another; empty where there is but one."""
    if count < 2:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    first = visible.split(",")[0].strip() or "0"
    return f"; of {count} GPUs number {first} is taken, CUDA_VISIBLE_DEVICES=NUMBER takes another"
