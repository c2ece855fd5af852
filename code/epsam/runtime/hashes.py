"""SHA-256 of many files, remembered by size, times and inode, so that a second run reads none of them again."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import Field

from epsam.errors import DataError
from epsam.runtime.files import sha256
from epsam.runtime.log import logger, progress
from epsam.runtime.records import Record, read_record, write_record
from epsam.workspace import Workspace

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
DIGITS = 64
THREADS = 4
"""Files hashed at once: hashing frees the interpreter, and waits for the disk."""


class CacheRecord(Record):
    """hashes.json."""

    files: dict[str, Annotated[str, Field(pattern="^[0-9]+ [0-9]+ [0-9]+ [0-9]+ [0-9a-f]{64}$")]]
    """By path relative to the top level: bytes, time of its content (ns), time of its inode (ns), inode, SHA-256."""
    sha256: Sha256
    """Of `files`: a damaged cache is not used."""


def hash_files(paths: Iterable[Path], root: Path, cache: Path) -> dict[Path, str]:
    """SHA-256 of each of `paths` under `root`, without those that cannot be read (gone, folders, no permission).

    Files whose size, times and inode `cache` knows are not read again; a damaged cache is made again. The time of the
    inode counts as well, which programs that keep a file's time (`cp -p`, `rsync -t`, `unzip`) do not set.
    """
    known, changed = _read(cache), False
    hashes: dict[Path, str] = {}
    todo: dict[Path, str] = {}
    for path in paths:
        stamp = _stamp(path)
        entry = known.get(_key(path, root), "")
        if stamp and entry.startswith(f"{stamp} "):
            hashes[path] = entry[-DIGITS:]
        elif stamp:
            todo[path] = stamp
    if not todo:
        return hashes
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(_hash, todo)
        for path, digest in zip(progress(todo, desc="hash files", unit="file"), results, strict=True):
            if digest:
                hashes[path], changed = digest, True
                known[_key(path, root)] = f"{todo[path]} {digest}"
    if changed:
        asked = {_key(path, root) for path in hashes}
        files = {key: entry for key, entry in known.items() if key in asked or (root / key).exists()}
        write_record(cache, CacheRecord(files=files, sha256=_digest(files)))
    return hashes


def _read(cache: Path) -> dict[str, str]:
    if not cache.is_file():
        return {}
    try:
        record = read_record(cache, CacheRecord, "it is made again")
    except DataError as error:
        logger.warning(str(error))
        return {}
    if record.sha256 != _digest(record.files):
        logger.warning(f"{cache}: is not what was written; it is made again")
        return {}
    return record.files


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _key(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ""  # a link that leads nowhere, or no file's name; its stage says what becomes of it
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:
        return ""


def hashes_of(workspace: Workspace, paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of files of a run; see `hash_files`."""
    return hash_files(paths, workspace.root, workspace.state / "hashes.json")
