"""The embedding store: what SAM's frozen encoder says of each patch and view, kept in memory-mapped shards.

A folder holds `store.json` (its signature and layout) and `shard_00000.npy`, ... each (n, views, C, h, w) float16
of n consecutive patches. Shards are written whole, so a store that was interrupted goes on with the next one.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epsam.errors import StateError
from epsam.runtime.files import atomic, read_object, write_json
from epsam.runtime.log import logger

FORMAT = 1
SHARD_BYTES = 128 * 2**20
SHARD_PATCHES = 64
"""Most patches of a shard: what an interruption can cost."""


@dataclass(frozen=True)
class Layout:
    """What a store holds and how."""

    signature: Mapping[str, Any]
    """What the embeddings depend on; `patches` maps each patch name, in order, to the hash of its file."""
    views: int
    shape: tuple[int, int, int]
    """(C, h, w) of one embedding."""

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return len(self.signature["patches"]) * self._patch_bytes

    @property
    def shard_patches(self) -> int:
        return max(1, min(SHARD_PATCHES, SHARD_BYTES // self._patch_bytes))

    @property
    def shards(self) -> list[range]:
        """Patch positions of each shard."""
        patches, step = len(self.signature["patches"]), self.shard_patches
        return [range(start, min(start + step, patches)) for start in range(0, patches, step)]

    @property
    def _patch_bytes(self) -> int:
        return self.views * int(np.prod(self.shape)) * 2


class EmbeddingStore:
    """Reads and writes the shards of one split."""

    def __init__(self, folder: Path, layout: Layout):
        self.folder = Path(folder)
        self.layout = layout
        self._open: dict[int, np.memmap] = {}

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a store was started in `folder`."""
        return (Path(folder) / "store.json").is_file()

    @classmethod
    def create(cls, folder: Path, layout: Layout) -> "EmbeddingStore":
        """Start a store, or go on with one of the same signature; one of something else is deleted first."""
        if cls.exists(folder):
            try:
                return cls.open(folder, layout.signature)
            except StateError as error:
                logger.warning(f"embeddings are made anew: {error}")
                shutil.rmtree(folder)
        write_json(Path(folder) / "store.json", {"format": FORMAT, "signature": dict(layout.signature),
                          "views": layout.views, "shape": list(layout.shape)})
        return cls(folder, layout)

    @classmethod
    def open(cls, folder: Path, signature: Mapping[str, Any]) -> "EmbeddingStore":
        """Open what is there; raises StateError when it is missing or was made from something else."""
        if not cls.exists(folder):
            raise StateError(f"{folder}: no embeddings there; run the stage embed, or set sam.embeddings=off")
        saved = read_object(Path(folder) / "store.json")
        differences = [f"store format: {saved.get('format')} there, {FORMAT} here"] * (saved.get("format") != FORMAT)
        differences += _differences(saved.get("signature", {}), signature)
        if differences:
            raise StateError(f"{folder} was made from something else ({'; '.join(differences)}); start again at "
                             "the stage embed (--from embed), or go back to what it was made from")
        return cls(folder, Layout(saved["signature"], saved["views"], tuple(saved["shape"])))

    def missing(self) -> list[int]:
        """Shards that are not there, or not whole."""
        return [shard for shard in range(len(self.layout.shards)) if self._complaint(shard)]

    def check(self) -> None:
        """Raise StateError naming the first shard that is missing, truncated or of another shape."""
        broken = self.missing()
        if broken:
            raise StateError(f"{self._path(broken[0])} {self._complaint(broken[0])} ({len(broken)} of "
                             f"{len(self.layout.shards)} shards); run the stage embed again, it mends the store")

    def write(self, shard: int, embeddings: np.ndarray) -> None:
        """Write one shard, (n, views, C, h, w) float16, under a temporary name and rename it."""
        with atomic(self._path(shard)) as temporary:
            np.save(temporary, embeddings)

    def read(self, position: int, view: int) -> np.ndarray:
        """Embedding (C, h, w) float16 of a patch (position in the signature's patches) in a view, memory-mapped."""
        shard, row = divmod(position, self.layout.shard_patches)
        if shard not in self._open:
            self._open[shard] = np.load(self._path(shard), mmap_mode="r")
        return self._open[shard][row, view]

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard_{shard:05d}.npy"

    def _complaint(self, shard: int) -> str:
        expected = (len(self.layout.shards[shard]), self.layout.views, *self.layout.shape)
        try:
            array = np.load(self._path(shard), mmap_mode="r")
        except FileNotFoundError:
            return "is missing"
        except (OSError, ValueError, EOFError):
            return "is truncated or damaged"
        if (array.shape, array.dtype) != (expected, np.float16):
            return f"has shape {array.shape}, not {expected}"
        return ""


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = [f"{key}: {saved.get(key)} there, {now.get(key)} here"
             for key in sorted((saved.keys() | now.keys()) - {"patches"}) if saved.get(key) != now.get(key)]
    there, here = saved.get("patches", {}), now["patches"]
    changed = {
        "missing there": [name for name in here if name not in there],
        "no longer here": [name for name in there if name not in here],
        "with another image": [name for name in here if name in there and there[name] != here[name]],
    }
    return found + [f"patches {what}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                    for what, names in changed.items() if names]
