"""The folder that predictions are written to: whose it is, what is kept, what may be replaced."""

import shutil
from pathlib import Path
from typing import Any

from epsam.errors import DataError, StateError
from epsam.runtime.files import read_json, write_json
from epsam.runtime.log import logger


def check_place(data: Path, output: Path) -> None:
    """Raise DataError when `output` would mix with `data`, the slides or patches to predict."""
    if output.exists() and not output.is_dir():
        raise DataError(f"OUTPUT_DIR={output} is a file; give a folder, it is made when missing")
    if (output / "image").is_dir():
        raise DataError(f"OUTPUT_DIR={output} is a patch folder (image/ lies in it): its masks would be replaced; choose "
                        "another")
    inside, outer = output.resolve(), data.resolve()
    if data.is_file() and inside == outer.parent:
        raise DataError(f"OUTPUT_DIR={output} is the folder of the slide; choose another, masks would lie among slides")
    if data.is_dir() and (inside == outer or outer in inside.parents):
        raise DataError(f"OUTPUT_DIR={output} lies inside TEST_DATASET_DIR={data}; choose a folder outside, or the "
                        "next call would take its own outputs for data")


def open_output(output: Path, names: list[str], signature: dict[str, Any], *, fresh: bool) -> None:
    """Make `output` ready for `names` (files and folders that will be written), made under `signature`.

    What an earlier call made under the same signature is kept and gone on with; `fresh` deletes what earlier calls
    made, and nothing else. Raises StateError for a folder of another signature, and for files of these names that
    were not made by this program.
    """
    mark = output / "state" / "inference.json"
    saved = read_json(mark) if mark.is_file() else {"signature": None, "written": []}
    if fresh:
        for name in {*saved["written"], *names}:
            _delete(output / name)
        for left in ("slides", "work", "patches.jsonl"):
            _delete(output / "state" / left)
        saved = {"signature": None, "written": []}
    changed = [key for key, value in signature.items() if saved["signature"] and saved["signature"].get(key) != value]
    if changed:
        raise StateError(f"OUTPUT_DIR={output} holds predictions made with another {', '.join(changed)}; choose "
                         "another OUTPUT_DIR, or replace them with --fresh")
    foreign = [name for name in names if name not in saved["written"] and (output / name).exists()]
    if foreign:
        raise StateError(f"{output / foreign[0]} is there but was not made by ./infer.sh; choose another OUTPUT_DIR, "
                         "or replace it with --fresh")
    if saved["written"]:
        logger.info(f"{output}: going on with what is there; --fresh would replace it")
    write_json(mark, {"signature": signature, "written": sorted({*saved["written"], *names})})


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
