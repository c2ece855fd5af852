"""The embedding store: what SAM's frozen encoder says of each patch and view, kept in memory-mapped shards.

A folder holds `store.json` (its signature, layout and the SHA-256 of each shard) and `shard_00000.npy`, ... each
(n, views, C, h, w) float16 of n consecutive patches. Shards are written under a temporary name and renamed, so a store that was
interrupted continues with the next one; a shard that was damaged since is replaced alone.
"""

import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

from epsam.errors import DataError, StateError
from epsam.runtime.files import atomic, remove, sha256
from epsam.runtime.hashes import Sha256
from epsam.runtime.log import logger, progress
from epsam.runtime.ranks import ALONE, Ranks
from epsam.runtime.records import Record, read_record, write_record
from epsam.runtime.text import listed

FORMAT = 2
SHARD_BYTES = 128 * 2**20
SHARD_PATCHES = 64
"""Most patches of a shard: what an interruption can cost."""


_CHECKED: set[tuple[str, int, int, int, str]] = set()
"""Shards that this process has hashed and found undamaged (path, bytes, time, inode, SHA-256): a stage opens stores often."""


class StoreRecord(Record):
    """store.json."""

    format: int
    signature: dict[str, str | int | dict[str, str]]
    views: PositiveInt
    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    shards: dict[str, Sha256]
    """By file name; of those that are written."""


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

    def __init__(self, folder: Path, layout: Layout, hashes: Mapping[str, str] | None = None):
        self.folder = Path(folder)
        self.layout = layout
        self._hashes = dict(hashes or {})
        self._open: dict[int, np.memmap] = {}

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a store was started in `folder`."""
        return (Path(folder) / "store.json").is_file()

    @classmethod
    def create(cls, folder: Path, layout: Layout) -> "EmbeddingStore":
        """Start a store, or go on with one of the same signature; one of something else, or damaged, is deleted first."""
        if cls.exists(folder):
            try:
                return cls.open(folder, layout.signature)
            except (StateError, DataError) as error:
                logger.warning(f"embeddings are computed again: {error}")
                remove([Path(folder) / "store.json", *Path(folder).glob("shard_*.npy")])
        store = cls(folder, layout)
        store._write_record()
        return store

    @classmethod
    def open(cls, folder: Path, signature: Mapping[str, Any]) -> "EmbeddingStore":
        """Open what is there.

        Raises StateError when it is missing or was made from something else, DataError when store.json is damaged.
        """
        if not cls.exists(folder):
            raise StateError(f"{folder}: no embeddings there; run the stage embed, or set sam.embeddings=off")
        saved = read_record(
            Path(folder) / "store.json", StoreRecord, "the stage embed makes it again (./train.sh with --from embed)"
        )
        differences = [f"store format: {saved.format} there, {FORMAT} here"] * (saved.format != FORMAT)
        differences += _differences(saved.signature, signature)
        if differences:
            raise StateError(
                f"{folder} was made from something else ({'; '.join(differences)}); start again at "
                "the stage embed (--from embed), or go back to what it was made from"
            )
        channels, height, width = saved.shape
        return cls(folder, Layout(saved.signature, saved.views, (channels, height, width)), saved.shards)

    def missing(self) -> list[int]:
        """Shards that are missing, incomplete, or not what was written."""
        shards = range(len(self.layout.shards))
        if all(self._is_checked(shard) for shard in shards):
            return []
        bar = progress(shards, desc=f"check embeddings {self.folder.name}", unit="shard")
        return [shard for shard in bar if self._complaint(shard)]

    def check(self) -> None:
        """Raise StateError naming the first shard that is missing, damaged or of another shape.

        Every shard is hashed, once per process as long as its file stays.
        """
        broken = self.missing()
        if broken:
            raise StateError(
                f"{self._path(broken[0])} {self._complaint(broken[0])} ({len(broken)} of "
                f"{len(self.layout.shards)} shards); run the stage embed again, it replaces that shard"
            )

    def write(self, shard: int, embeddings: np.ndarray, ranks: Ranks = ALONE) -> None:
        """Write one shard, (n, views, C, h, w) float16, and then its hash; without that it counts as missing.

        Of several processes each writes a shard of its own, or calls `share_hashes` where there is none left for it.
        """
        path = self._path(shard)
        with atomic(path) as temporary:
            np.save(temporary, embeddings)
            self._hashes[path.name] = sha256(temporary)
        self.share_hashes(ranks)

    def share_hashes(self, ranks: Ranks) -> None:
        """Record the hashes of what all processes have written."""
        for hashes in ranks.gather(self._hashes):
            self._hashes |= hashes
        if ranks.is_first:
            self._write_record()

    def read(self, position: int, view: int) -> np.ndarray:
        """Embedding (C, h, w) float16 of a patch (position in the signature's patches) in a view, memory-mapped."""
        shard, row = divmod(position, self.layout.shard_patches)
        if shard not in self._open:
            self._open[shard] = np.load(self._path(shard), mmap_mode="r")
        return self._open[shard][row, view]

    def _write_record(self) -> None:
        write_record(
            self.folder / "store.json",
            StoreRecord(
                format=FORMAT,
                signature=dict(self.layout.signature),
                views=self.layout.views,
                shape=list(self.layout.shape),
                shards=self._hashes,
            ),
        )

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard_{shard:05d}.npy"

    def _complaint(self, shard: int) -> str:
        expected = (len(self.layout.shards[shard]), self.layout.views, *self.layout.shape)
        try:
            array = np.load(self._path(shard), mmap_mode="r")
        except FileNotFoundError:
            return "is missing"
        except (OSError, ValueError, EOFError, OverflowError, SyntaxError, tokenize.TokenError):
            return "is truncated or damaged"
        if (array.shape, array.dtype) != (expected, np.float16):
            return f"has shape {array.shape}, not {expected}"
        if self._is_checked(shard):
            return ""
        if sha256(self._path(shard)) != self._hashes.get(self._path(shard).name):
            return "is damaged: its SHA-256 is not that of what was written"
        _CHECKED.add(self._identity(shard))
        return ""

    def _is_checked(self, shard: int) -> bool:
        return self._path(shard).is_file() and self._identity(shard) in _CHECKED

    def _identity(self, shard: int) -> tuple[str, int, int, int, str]:
        path = self._path(shard)
        found = path.stat()
        return str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ino, self._hashes.get(path.name, "")


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = [
        f"{key}: {saved.get(key)} there, {now.get(key)} here"
        for key in sorted((saved.keys() | now.keys()) - {"patches"})
        if saved.get(key) != now.get(key)
    ]
    there, here = saved.get("patches"), now["patches"]
    there = there if isinstance(there, dict) else {}
    changed = {
        "missing there": [name for name in here if name not in there],
        "no longer here": [name for name in there if name not in here],
        "with another image": [name for name in here if name in there and there[name] != here[name]],
    }
    return found + [f"patches {what}: {listed(names, 1)}" for what, names in changed.items() if names]
