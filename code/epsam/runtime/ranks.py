"""The processes that share a stage: this one alone, or those that torchrun or srun started.

No DistributedDataParallel: gradients are summed once per step, so a network stays what it is with one process, and so do
the files that are written. PyTorch is imported where there is more than one process.
"""

import datetime
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from epsam.errors import EpsamError

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")

TIMEOUT = datetime.timedelta(days=1)
"""Of a process that waits for the others, which may hash a disk of slides meanwhile; those that fail are noticed at once."""
FAILED = "epsam/failed"
"""Key of the store that all processes read: how many of them have failed."""
POLL_S = 0.2
GRACE_S = 2.0
"""Seconds that a process has for ending by itself after another one has failed."""
SIGNS_OF_LOST_PROCESS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""In messages of RuntimeError, while processes talk to each other."""


@dataclass(frozen=True)
class Ranks:
    """Which of `count` processes this is. All methods but `part` are called by all of them, in the same order."""

    index: int = 0
    count: int = 1
    on_this_machine: int = 0
    """Its number among the processes of its machine."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what all share, and logs."""
        return self.index == 0

    def part(self, items: Sequence[Value]) -> list[Value]:
        """Those of `items` that are for this process."""
        return list(items[self.index :: self.count])

    def part_of_batches(self, items: Sequence[Value], size: int) -> list[Value]:
        """Those of `items` that are for this process, in the batches of `size` that one process would make of them all."""
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        return [item for batch in self.part(batches) for item in batch]

    def decide(self, make: Callable[[], Value]) -> Value:
        """What `make()` gives in the first process, in all of them. It is called in no other."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        box = [make() if self.is_first else None]
        dist.broadcast_object_list(box)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """`value` of each process, in all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def gather_list(self, values: Iterable[Value]) -> list[Value]:
        """The `values` of all processes, one process after the other."""
        return [value for part in self.gather(list(values)) for value in part]

    def interleave(self, mine: Iterable[Value]) -> list[Value]:
        """The results for `part(items)` of all processes, in the order of `items`."""
        parts = self.gather(list(mine))
        most = max(map(len, parts))
        return [part[place] for place in range(most) for part in parts if place < len(part)]

    def wait(self) -> None:
        """Return when all processes are here."""
        self.gather(None)

    def sum_gradients(self, parameters: Iterable["torch.nn.Parameter"], *figures: float) -> list[float]:
        """Replace each gradient by its sum over the processes; gives the sums of `figures`.

        In one all-reduce. A parameter has a gradient afterwards where it had one in any process: an optimiser leaves the
        others alone.
        """
        if self.count == 1:
            return list(figures)
        import torch

        chosen = [parameter for parameter in parameters if parameter.requires_grad]
        flat = [_in_memory_order(p, torch.zeros_like(p) if p.grad is None else p.grad.detach()) for p in chosen]
        like = flat[0]
        flags = like.new_tensor([parameter.grad is not None for parameter in chosen])
        summed = torch.cat([*flat, flags, like.new_tensor(figures)])
        torch.distributed.all_reduce(summed)
        *parts, flags, sums = summed.split([*(p.numel() for p in chosen), len(chosen), len(figures)])
        for parameter, part, has_gradient in zip(chosen, parts, flags.tolist(), strict=True):
            if has_gradient:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.as_strided(parameter.shape, parameter.stride()))
        return sums.tolist()


def _in_memory_order(parameter: "torch.Tensor", gradient: "torch.Tensor") -> "torch.Tensor":
    """`gradient`, of the shape of `parameter`, as a vector in the order of `parameter` in memory; a view where it can be.

    Parameters are dense, most of them with channels last, which a vector in the order of indices would be a slow copy of.
    """
    import torch

    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    return gradient.as_strided((parameter.numel(),), (1,))


ALONE = Ranks()


@contextmanager
def join() -> Iterator[Ranks]:
    """Meet the other processes that torchrun or srun started with this one; without any, nothing is done.

    Whatever ends one of them ends all, and the one that failed first alone reports it: in the others the exception ends
    the process here. Raises EpsamError when the processes cannot meet.
    """
    ranks = _ranks()
    if ranks.count == 1:
        yield ranks
        return
    import torch

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=TIMEOUT, rank=ranks.index, world_size=ranks.count)
        watch = _Watch(ranks)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise EpsamError(
            f"the {ranks.count} processes cannot meet at {where}: {' '.join(str(error).split())}"
        ) from None
    try:
        yield ranks
        ranks.wait()
    except BaseException as error:
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGALRM,
        ):  # torchrun stops the others, and this one with them
            signal.signal(number, signal.SIG_IGN)
        watch.stop()
        if not watch.claim():
            os._exit(1)
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS_OF_LOST_PROCESS):
            raise EpsamError(
                f"one of the {ranks.count} processes ended (killed? out of memory?). What was finished is kept; run the "
                "same command again to continue, with any number of processes"
            ) from None
        raise
    watch.stop()
    torch.distributed.destroy_process_group()


def has_joined() -> bool:
    """Whether this process is one of several that `join` brought together, and has not left them."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def end_shared_process(status: int = 0) -> NoReturn:
    """End this process, one of several that share a stage, when all is written and said.

    Python's own way of ending stops threads of torch.distributed wherever they are, and now and then that aborts.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _ranks() -> Ranks:
    """From the variables of torchrun, else of srun, which are completed to those that PyTorch reads."""
    variables = os.environ
    if "RANK" in variables and "WORLD_SIZE" in variables:
        return Ranks(int(variables["RANK"]), int(variables["WORLD_SIZE"]), int(variables.get("LOCAL_RANK", 0)))
    count = int(variables.get("SLURM_STEP_NUM_TASKS", 1))  # of srun; a batch script itself has none
    if count == 1:
        return ALONE
    if "MASTER_ADDR" not in variables:
        if variables.get("SLURM_STEP_NUM_NODES", "1") != "1":
            raise EpsamError(
                "srun on several machines: MASTER_ADDR is missing; before it in the batch script: "
                'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
            )
        variables["MASTER_ADDR"] = "localhost"
    job, step = int(variables.get("SLURM_JOB_ID", 0)), int(variables.get("SLURM_STEP_ID", 0))
    variables.setdefault("MASTER_PORT", str(20000 + (10 * job + step) % 20000))
    return Ranks(int(variables["SLURM_PROCID"]), count, int(variables.get("SLURM_LOCALID", 0)))


class _Watch:
    """A thread that ends this process when another one has failed, whatever this one waits for."""

    def __init__(self, ranks: Ranks) -> None:
        from torch.distributed import PrefixStore, TCPStore

        # A connection of its own: the one of the process group may be waiting for an answer.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = PrefixStore("epsam", TCPStore(address, port, is_master=False, wait_for_workers=False))
        self._ranks, self._stopped = ranks, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def claim(self) -> bool:
        """Whether no other process has failed before, so that this one is to report."""
        try:
            return self._store.add(FAILED, 1) == 1
        except RuntimeError:  # the process that keeps the store has ended
            return self._ranks.index == min(1, self._ranks.count - 1)

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            try:
                if not self._store.check([FAILED]):
                    continue
            except RuntimeError:
                return  # its keeper has ended: what waits for it gets an error
            if not self._stopped.wait(POLL_S):  # time for the one that failed to report
                os.kill(os.getpid(), signal.SIGTERM)
            if not self._stopped.wait(GRACE_S):
                os._exit(1)
            return
