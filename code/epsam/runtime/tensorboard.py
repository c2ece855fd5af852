"""Figures of a training for TensorBoard, where it is installed (the extra `[tensorboard]`)."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Scalars:
    """Event files of one training in `folder`; nothing is written where TensorBoard is not installed.

    Of an epoch that an earlier process wrote before it was stopped, TensorBoard shows what is written last.
    """

    def __init__(self, folder: Path):
        self.folder, self._installed = folder, find_spec("tensorboard") is not None
        self._writer: Any = None

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Write the figures of an epoch to disk."""
        if not self._installed:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=epoch)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
