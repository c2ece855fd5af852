"""Damaged and hostile files, made from whole ones: what test_fuzz.py and benchmarks/fuzz.py feed the readers with.

Each mutation takes a random generator and the bytes of a whole file, and gives the bytes of another. The same
generator state gives the same bytes.
"""

import csv
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

Mutation = Callable[[Random, bytes], bytes]

TOKENS = (
    b"\0",
    b"\x1b[31m",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b",",
    b'"',
    b"'",
    b":",
    b"{",
    b"}",
    b"[",
    b"]",
    b"<",
    b">",
    b"&",
    b"=",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1" * 5000,
    b"[" * 100_000,
    b'{"a":' * 5000,
    b"<a>" * 5000,
    b"!!python/object/apply:os.abort []",
    b"&a [*a]",
    b"a" * 5000,
)
"""Bytes that mean something to one parser or another."""

SCALARS = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    2**31,
    -(2**31) - 1,
    2**63,
    2**64,
    10**400,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "a",
    "0",
    "-1",
    "nan",
    "1e999",
    "²",
    "１",
    "1_0",
    "None",
    "train",
    "\0",
    "\x1b[31m",
    "\u202e",
    "\ud800",
    "a\nb",
    "=1+1",
    "$\\foo$",
    "../outside",
    "a/b",
    ".",
    "..",
    "é" * 200,
)
"""Values that take the place of others; no absolute path is among them, lest a reader that is wrong does harm."""


def damaged(rng: Random, whole: bytes) -> bytes:
    """A few bytes flipped, replaced, cut off, doubled or put in."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 2, 8, 64, 1024)))
        match rng.randrange(7):
            case 0 if start < len(data):
                data[start] ^= 1 << rng.randrange(8)
            case 1 if start < len(data):
                data[start] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del data[start:]
            case 3:
                del data[start:end]
            case 4:
                data[start:start] = data[start:end] * rng.choice((1, 2, 20))
            case 5:
                data[start:start] = rng.choice(TOKENS)
            case 6:
                data[start:end] = rng.randbytes(end - start)
    return bytes(data)


def either(*mutations: Mutation) -> Mutation:
    """One of several mutations, the first ones as often as the last ones."""
    return lambda rng, whole: rng.choice(mutations)(rng, whole)


def value(rng: Random) -> Any:
    """A value of another type or size; now and then a nested or a very long one."""
    match rng.randrange(20):
        case 0:
            return [value(rng) for _ in range(rng.randrange(4))]
        case 1:
            return {text(rng): value(rng) for _ in range(rng.randrange(4))}
        case 2:
            return nested(rng.choice((3, 30, 300)), rng.random() < 0.5)
        case 3:
            return "x" * rng.choice((300, 70_000))
    return rng.choice(SCALARS)


def text(rng: Random) -> str:
    """A value as a string."""
    return str(rng.choice(SCALARS))


def nested(depth: int, lists: bool) -> Any:
    """Lists in lists, or objects in objects."""
    inner: Any = 1
    for _ in range(depth):
        inner = [inner] if lists else {"a": inner}
    return inner


def changed_tree(rng: Random, root: Any) -> Any:
    """A tree of dicts and lists with some nodes replaced, removed, renamed, added or exchanged; `root` is altered."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = list(_places(root))
        if not places or rng.random() < 0.03:
            return value(rng)
        parent, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[text(rng)] = parent.pop(key)
            case 2 if isinstance(parent, dict):
                parent[text(rng)] = value(rng)
            case 2:
                parent.insert(key, value(rng))
            case 3:
                other, second = rng.choice(places)
                parent[key] = _copy(other[second])
            case _:
                parent[key] = value(rng)
    return root


MAX_DEPTH = 50
"""Nodes below are neither changed nor copied: an earlier change may have put thousands of lists into each other."""


def _places(node: Any, depth: int = 0) -> Any:
    """Parent and key of the nodes below `node`."""
    if isinstance(node, dict | list) and depth < MAX_DEPTH:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield node, key
            yield from _places(child, depth + 1)


def _copy(node: Any, depth: int = 0) -> Any:
    if depth == MAX_DEPTH:
        return node
    if isinstance(node, dict):
        return {key: _copy(child, depth + 1) for key, child in node.items()}
    return [_copy(child, depth + 1) for child in node] if isinstance(node, list) else node


def encoded(rng: Random, written: str) -> bytes:
    """Text as bytes, now and then in an encoding that no reader expects."""
    encoding = rng.choice(("utf-8",) * 20 + ("utf-8-sig", "utf-16", "utf-32", "latin-1"))
    return written.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def json_file(rng: Random, whole: bytes) -> bytes:
    """JSON with other values, without some, with some twice."""
    if rng.random() < 0.25:
        return damaged(rng, whole)
    written = json.dumps(changed_tree(rng, json.loads(whole)), ensure_ascii=rng.random() < 0.7)
    if rng.random() < 0.1 and (keys := re.findall(r'"\w+": ', written)):
        key = rng.choice(keys)
        written = written.replace(key, f"{key}{json.dumps(value(rng))}, {key}", 1)
    return encoded(rng, written)


def json_lines(rng: Random, whole: bytes) -> bytes:
    """One object a line, some of them changed."""
    lines = whole.splitlines()
    for number in rng.sample(range(len(lines)), rng.choice((1, 2))):
        lines[number] = json_file(rng, lines[number])
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n")).join(lines) + rng.choice((b"\n", b""))


def yaml_file(rng: Random, whole: bytes) -> bytes:
    """YAML with other values (written as JSON, which YAML is too), or damaged."""
    import yaml

    if rng.random() < 0.4:
        return damaged(rng, whole)
    return encoded(rng, json.dumps(changed_tree(rng, yaml.load(whole, yaml.CSafeLoader)), ensure_ascii=False))


def csv_file(rng: Random, whole: bytes) -> bytes:
    """A table with other cells, without columns or rows, with some twice, with rows of another length."""
    if rng.random() < 0.3:
        return damaged(rng, whole)
    rows = list(csv.reader(io.StringIO(whole.decode())))
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows)
        column = rng.randrange(len(rows[0]))
        match rng.randrange(8):
            case 0:
                rows = [[cell for i, cell in enumerate(r) if i != column] for r in rows]
            case 1:
                rows.remove(row)
            case 2:
                rows.append(row)
            case 3:
                row.append(text(rng))
            case 4 if row:
                row.pop()
            case _ if column < len(row):
                row[column] = rng.choice((text(rng), text(rng), "x" * rng.choice((1000, 140_000))))
        if not rows or not rows[0]:
            break
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", escapechar="\\").writerows(rows)
    return encoded(rng, stream.getvalue())


def xml_file(rng: Random, whole: bytes) -> bytes:
    """XML with other attributes and names, elements twice or nested."""
    if rng.random() < 0.3:
        return damaged(rng, whole)
    written = whole.decode()
    for _ in range(rng.choice((1, 1, 2, 5))):
        tags = list(re.finditer(r"<[^>]*>", written))
        attributes = list(re.finditer(r'(?<=")[^"<>]*(?=")', written))
        match rng.randrange(5):
            case 0 if tags:
                tag = rng.choice(tags)
                written = written[: tag.end()] + tag[0] * rng.choice((1, 100)) + written[tag.end() :]
            case 1 if tags:
                tag = rng.choice(tags)
                written = written[: tag.start()] + written[tag.end() :]
            case 2:
                words = re.findall(r"\w+", written)
                written = written.replace(rng.choice(words), rng.choice(("b", "Name", "X", "é", "x" * 3000)), 1)
            case _ if attributes:
                spot = rng.choice(attributes)
                put = rng.choice((text(rng), text(rng), "9" * 5000)).replace('"', "")
                written = written[: spot.start()] + put + written[spot.end() :]
    return encoded(rng, written)


def png_file(rng: Random, whole: bytes) -> bytes:
    """A PNG that claims another size or kind of pixel, its checksum right; or damaged."""
    if rng.random() < 0.5:
        return damaged(rng, whole)
    width, height, *kind = struct.unpack(">IIBBBBB", whole[16:29])
    sides = (0, 1, width, height, 1000, 20_000, 2**27, 2**31 - 1, 2**32 - 1)
    head = struct.pack(
        ">IIBBBBB",
        rng.choice(sides),
        rng.choice(sides),
        *(rng.choice((part, part, rng.randrange(256))) for part in kind),
    )
    return whole[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + whole[33:]


def zip_file(rng: Random, whole: bytes) -> bytes:
    """A zip (npz, pth) with one of its files damaged, missing, twice or renamed, the checksums right; or damaged."""
    if rng.random() < 0.3:
        return damaged(rng, whole)
    entries = list(_entries(whole))
    number = rng.randrange(len(entries))
    name, content = entries[number]
    match rng.randrange(6):
        case 0:
            del entries[number]
        case 1:
            entries.append((f"{name}{rng.choice(('', '.npy', '/', 'x' * 300))}", content))
        case 2:
            entries[number] = (rng.choice(("../x", "a", name.upper())), content)
        case _:
            entries[number] = (name, damaged(rng, content))
    return _zipped(entries, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


@lru_cache(maxsize=32)
def _entries(whole: bytes) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return tuple((name, archive.read(name)) for name in archive.namelist())


def _zipped(entries: list[tuple[str, bytes]], method: int) -> bytes:
    import warnings

    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of doubled names, which are meant
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


def npz_file(rng: Random, whole: bytes) -> bytes:
    """Arrays of another shape, type or content, some missing; headers that claim terabytes; or a damaged zip."""
    if rng.random() < 0.3:
        return zip_file(rng, whole)
    entries = dict(_entries(whole))
    for name in rng.sample(list(entries), min(len(entries), rng.choice((1, 1, 2)))):
        if rng.random() < 0.15:
            entries[name] = _npy_header(
                rng.choice(("<f4", "|u1", "<U9", "|O", "<m8[s]", "|V1", "x")),
                rng.choice(("(1099511627776,)", "(-1,)", "(0,)", "()", "(2, 2)", "(9,) * 9")),
            )
        else:
            array = np.load(io.BytesIO(entries[name]), allow_pickle=False)
            stream = io.BytesIO()
            np.save(stream, _changed_array(rng, array))
            entries[name] = stream.getvalue()
    return _zipped(list(entries.items()), zipfile.ZIP_STORED)


def npy_file(rng: Random, whole: bytes) -> bytes:
    """One array of another shape, type or content, or damaged."""
    if rng.random() < 0.6:
        return damaged(rng, whole)
    stream = io.BytesIO()
    np.save(stream, _changed_array(rng, np.load(io.BytesIO(whole), allow_pickle=False)))
    return stream.getvalue()


def _npy_header(kind: str, shape: str) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header


def _changed_array(rng: Random, array: np.ndarray) -> np.ndarray:
    match rng.randrange(7):
        case 0:
            return array[: rng.randrange(len(array) + 1)] if array.ndim else array[None]
        case 1:
            return np.concatenate([array, array]) if array.ndim else np.stack([array, array])
        case 2:
            return rng.choice((array.ravel(), array[None], array.T))
        case 3:
            return np.array([rng.choice(SCALARS)] * rng.randrange(4), dtype=object)
        case 4 if array.dtype.kind in "biuf":
            with np.errstate(all="ignore"):
                return array.astype(
                    rng.choice((bool, np.uint8, np.int16, np.int64, np.float16, np.float64, np.complex64, "U8"))
                )
    if array.dtype.kind not in "biuf":
        return np.full(array.shape, text(rng).encode("ascii", "replace").decode())
    spoilt = array.astype(rng.choice((array.dtype, np.float64)))
    extreme = np.array(rng.choice((math.nan, math.inf, -1, 2, 1e300, -1e300, 2**62)), np.float64)
    with np.errstate(all="ignore"):
        np.put(spoilt, [rng.randrange(max(1, array.size))] if array.size else [], extreme.astype(spoilt.dtype))
    return spoilt


def weights_file(rng: Random, whole: bytes) -> bytes:
    """A checkpoint whose tensors have another shape, type or content, or that holds something else; or damaged."""
    import torch

    if rng.random() < 0.5:
        return zip_file(rng, whole)
    weights: dict[Any, Any] = dict(torch.load(io.BytesIO(whole), weights_only=True))
    key = rng.choice(list(weights))
    match rng.randrange(7):
        case 0:
            del weights[key]
        case 1:
            weights[rng.choice((None, 1, text(rng), (1, 2)))] = weights[key]
        case 2:
            weights[key] = value(rng)
        case 3:
            weights[key] = weights[key].to(
                rng.choice((torch.float64, torch.int8, torch.bool, torch.complex64, torch.bfloat16))
            )
        case 4:
            weights[key] = rng.choice((weights[key].reshape(-1), weights[key][None], torch.zeros(0)))
        case 5:
            weights[key] = torch.full_like(weights[key], rng.choice((math.nan, math.inf, 1)))
        case 6:
            weights = {rng.choice(("state_dict", "model", 1)): weights}
    stream = io.BytesIO()
    torch.save(weights if rng.random() < 0.9 else value(rng), stream)
    return stream.getvalue()


def line(rng: Random, whole: bytes) -> bytes:
    """One of several lines, damaged: a name of a file."""
    return damaged(rng, rng.choice(whole.splitlines()))
