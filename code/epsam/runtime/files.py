"""Reading and writing files: what is written goes to a temporary name first, so a file that exists is complete.

OpenCV and what decodes TIFF are imported where pictures are read: most commands read none before they know that they
have anything to do.
"""

import csv
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from epsam.errors import DataError
from epsam.runtime.image_formats import HEAD_BYTES, TIFF_HEADS, decode_tiff, image_size

MASK_VALUES = (0, 1, 255, 65535)
"""Greatest values of true masks."""
LEAST_BITS = 15
"""Of 16, that the brightest pixel of a patch uses: the ground of a slide is bright. Cameras of 10, 12 and 14 bits do not."""
MAX_CLASSES = 10
"""Values of a mask up to which they are taken for classes."""
STEM, SUFFIX = 40, 20
"""Bytes of a file's name that its temporary name begins and ends with at most: names may have 255."""
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.epsam-tmp(\..*)?", re.DOTALL)
"""Names of temporary files; no other file is taken for one."""
FORMULA = re.compile(r"'*[=+\-@\t\n]")
"""How a cell begins that spreadsheets run, or one that was kept from it."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, else remove it.

    An OSError names `path`: a full disk itself does not say which file it refused.
    """
    path = Path(path)
    beginning, ending = _ends_of_temporary(path)
    temporary = path.with_name(f".{beginning}.{secrets.token_hex(4)}.epsam-tmp{ending}")
    try:
        if not path.parent.is_dir():  # much cheaper than to try
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        # NumPy says how many bytes went missing, but neither why nor where.
        number, why = (
            (error.errno, error.strerror) if error.errno else (errno.EIO, f"not all could be written, {error}")
        )
        other = error.filename if error.filename and not TEMPORARY.fullmatch(Path(error.filename).name) else None
        raise OSError(number, why, other or str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _ends_of_temporary(path: Path) -> tuple[str, str]:
    """What temporary names of `path` begin and end with; those of long names hold a hash, and so are of no other file."""
    stem, suffix = os.fsencode(path.stem), os.fsencode(path.suffix)
    ending = path.suffix if len(suffix) <= SUFFIX else ""
    if len(stem) <= STEM and ending == path.suffix:
        return path.stem, ending
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    return f"{stem[: STEM - 9].decode(errors='ignore')}~{digest}", ending


def remove(paths: Iterable[Path]) -> None:
    """Delete files, and folders with all they hold; what is not there is no error."""
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Delete all temporary files that a killed process left under `folder`, which this process alone writes to."""
    found = folder.rglob(".*.epsam-tmp*")
    remove(path for path in found if TEMPORARY.fullmatch(path.name) and not path.is_dir())


def remove_temporaries_of(path: Path) -> None:
    """Delete the temporary files that a killed process left of `path`, which this process alone writes; of no other file."""
    if not path.parent.is_dir():
        return
    beginning, ending = map(re.escape, _ends_of_temporary(path))
    name = re.compile(rf"\.{beginning}\.[0-9a-f]{{8}}\.epsam-tmp{ending}", re.DOTALL)
    remove(found for found in path.parent.iterdir() if name.fullmatch(found.name) and not found.is_dir())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; names of files that are no text are escaped."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, sorted and indented."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises DataError when the file is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); delete it and run the stage again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises DataError when the file is missing, damaged or holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, not an object; delete it and run the stage again")
    return value


def _neutralise(cell: Any) -> Any:
    """Text that a spreadsheet would take for a formula, with ' before it; numbers stay as they are.

    A carriage return, which Python's csv does not quote everywhere, is written as the two characters \\r.
    """
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r", "\\r")
    if not FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    """Write rows as CSV atomically, with a header; what a spreadsheet would take for a formula gets a ' before it.

    Names of files that are no text are escaped.
    """
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _neutralise(cell) for key, cell in row.items()} for row in rows)


def read_csv(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """Read CSV rows, without the ' that `write_csv` puts; raises DataError when the file or one of `columns` is missing."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = [
                {
                    key: cell[1:] if isinstance(cell, str) and cell.startswith("'") and FORMULA.match(cell) else cell
                    for key, cell in row.items()
                }
                for row in reader
            ]
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} is missing; found {', '.join(header) or 'nothing'}")
    return rows


def write_png(path: Path, array: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3), grey uint8 (H, W) or a boolean mask (H, W, as 0/255) as PNG, atomically."""
    import cv2

    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise DataError(f"{path}: an array of shape {array.shape} and type {array.dtype} is no PNG")
    with atomic(path) as temporary:
        temporary.write_bytes(data.tobytes())


def read_image(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or TIFF as RGB uint8 (H, W, 3), transparent parts over white; raises DataError.

    Of 16 bits the upper 8 are kept. Raises it too where no pixel uses them all, as files of 12-bit cameras do not.
    """
    import cv2

    array = _decode(path)
    if array.dtype == np.uint16:
        bits = int(array.max(initial=0)).bit_length()
        if 0 < bits < LEAST_BITS:
            raise DataError(
                f"{path}: 16 bits a channel, of which {bits} are used, so it would be all but black; save it with 8 bits"
            )
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 2:
        return cv2.cvtColor(array, cv2.COLOR_GRAY2RGB)
    if array.shape[2] == 3:
        return cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
    share = array[..., 3:] / 255
    return np.rint(array[..., 2::-1] * share + 255 * (1 - share)).astype(np.uint8)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask of two values as bool (H, W): 0 is no tumour; 1, 255 or, in 16 bits, 65535 is tumour.

    Raises DataError when it cannot be decoded, or holds other values: soft borders, classes, colours, transparency.
    """
    array = _decode(path)
    if array.ndim == 3:
        array = one_channel(path, array)
    high = int(array.max(initial=0))
    tumour = array == high if high else np.zeros(array.shape, bool)
    if high not in MASK_VALUES or not (tumour | (array == 0)).all():
        values = np.unique(array)
        what = "classes" if len(values) <= MAX_CLASSES else "a soft border or a picture"
        listed = ", ".join(map(str, values[:MAX_CLASSES])) + (", ..." if len(values) > MAX_CLASSES else "")
        raise DataError(
            f"{path}: a mask holds two values, this one {len(values)} ({listed}), {what}; write 0 for no "
            "tumour and 255 for tumour"
        )
    return tumour


def read_pixels(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or TIFF as its file holds it: (H, W) or (H, W, BGR or BGRA), uint8 or uint16; raises DataError."""
    return _decode(path)


def one_channel(path: Path, array: np.ndarray) -> np.ndarray:
    """(H, W) of a grey picture (H, W, 3 or 4) saved as colours; raises DataError for colours and transparency."""
    if array.shape[2] == 4 and (array[..., 3] != np.iinfo(array.dtype).max).any():
        raise DataError(f"{path}: a mask with transparent parts; write 0 for no tumour and 255 for tumour, no alpha")
    if (array[..., 1:3] != array[..., :1]).any():
        raise DataError(f"{path}: a mask in colour; write 0 for no tumour and 255 for tumour, in one channel")
    return array[..., 0]


def _decode(path: Path) -> np.ndarray:
    import cv2

    try:
        data = np.fromfile(path, np.uint8)
        if data[:4].tobytes() in TIFF_HEADS:
            return decode_tiff(path)
        image_size(path, data[:HEAD_BYTES].tobytes())
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise DataError(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from None
    if array is None:
        raise DataError(f"{path}: cannot be decoded as an image; delete it and make it again")
    return array


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
