"""The folder that predictions are written to: whose it is, what is kept, what may be replaced.

`state/inference.json` records the files of patches and the tables that this program writes there, by plain names,
`state/slides/` those of slides (slide_records.py); only these are deleted.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from epsam.errors import DataError, StateError
from epsam.runtime.files import sha256
from epsam.runtime.log import logger
from epsam.runtime.records import PlainName, Record, as_plain_values, read_record, write_record

Place = Literal["", "mask", "overlay", "pages"]
"""Folders of predictions below OUTPUT_DIR; "" is OUTPUT_DIR itself."""
OUTPUTS = (".geojson", ".xml", "_mask.tif", "_probability.tif", "_overlay.png")
"""What is written for a slide: its name and this."""
PAGE_FILES = (".html", ".json", "_thumbnail.jpg", "_probability.png")
"""What is written for the page of a slide, in pages/: its name and this, beside the tiles of its picture."""
PICTURE_LEVELS = 3
"""Of the picture of a slide on its page, at most; each is twice the one before, and the coarsest is one tile."""
WORK_FILES = ("classified.f32", "tiles.u8", "map.u8")
"""What a slide under way has in state/work/<name>/."""
TABLES = ("slides.csv", "predictions.csv", "index.html")
"""Written anew by every call, so that another hash does not mean that somebody else wrote them."""
LINKS_REFUSED = (
    "mask",
    "overlay",
    "pages",
    "state",
    "state/slides",
    "state/work",
    "state/claims",
    "state/inference.json",
    "state/patches.jsonl",
)
ADVICE = "move it away, or choose another OUTPUT_DIR"


class OutputRecord(Record):
    """state/inference.json."""

    signature: dict[str, Any]
    """What the predictions depend on."""
    files: dict[Place, dict[PlainName, str | None]]
    """Files by folder, with their SHA-256 once a call has ended; a folder of this list was made by this program."""
    inputs: list[str]
    """Full paths of the slides and folders that the first call was given."""


def read_output_record(folder: Path) -> OutputRecord:
    """The record of OUTPUT_DIR; raises DataError when it is missing or damaged."""
    fix = "what was made here is then not known: choose another OUTPUT_DIR, or move this one away"
    return read_record(folder / "state" / "inference.json", OutputRecord, fix)


def tile_suffix(level: int, row: int, column: int) -> str:
    """How the name of a tile of a slide's picture ends; no other file of any slide has the same."""
    return f"_{level}_{row}_{column}.jpg"


TILES = tuple(
    tile_suffix(level, row, column)
    for level in range(PICTURE_LEVELS)
    for row in range(2**level)
    for column in range(2**level)
)
"""Of the picture of a large, square slide; others have some of them."""


def check_place(data: Path, output: Path) -> None:
    """Raise DataError when `output` would mix with `data`, the slides or patches to predict."""
    if output.exists() and not output.is_dir():
        raise DataError(f"OUTPUT_DIR={output} is a file; give a folder, it is made when missing")
    if (output / "image").is_dir():
        raise DataError(
            f"OUTPUT_DIR={output} is a patch folder (image/ lies in it): its masks would be replaced; choose another"
        )
    inside, outer = output.resolve(), data.resolve()
    if data.is_file() and inside == outer.parent:
        raise DataError(f"OUTPUT_DIR={output} is the folder of the slide; choose another, masks would lie among slides")
    if data.is_dir() and (inside == outer or outer in inside.parents):
        raise DataError(
            f"OUTPUT_DIR={output} lies inside TEST_DATASET_DIR={data}; choose a folder outside, or the "
            "next call would take its own outputs for data"
        )
    for name in LINKS_REFUSED:
        if (path := output / name).is_symlink():
            raise DataError(f"{path} is a link: what lies behind it is not this program's to write or delete; {ADVICE}")


class OutputFolder:
    """OUTPUT_DIR with the record of what this program wrote there."""

    def __init__(self, folder: Path, signature: Mapping[str, Any], *, fresh: bool, inputs: Sequence[str] = ()):
        """Go on with what an earlier call made under the same signature.

        Nothing is written yet, so that an error between here and `begin`, which `with` calls, costs nothing.

        Raises StateError for a folder of another signature, and for one in which somebody else's files lie where this
        program would write; DataError when the record is damaged. Nothing is deleted then.
        """
        self.path, self._file = folder, folder / "state" / "inference.json"
        signature = as_plain_values(signature)
        if self._file.is_file():
            self._record = read_output_record(folder)
        else:
            self._record = OutputRecord(signature=dict(signature), files={}, inputs=list(inputs))
        self._check_folders()
        self._signature, self._fresh, self._inputs = signature, fresh, list(inputs)
        if fresh:
            for place, name in self._recorded():
                self._check_unchanged(place, name)
            return
        saved = self._record.signature
        if changed := [key for key in signature if saved.get(key) != signature[key]]:
            raise StateError(
                f"OUTPUT_DIR={folder} holds predictions made with another {', '.join(changed)}; choose "
                "another OUTPUT_DIR, or replace them with --fresh"
            )

    @property
    def inputs(self) -> list[str]:
        """Full paths that the first call was given."""
        return self._record.inputs

    def check_free(self, names: Iterable[str], place: Place = "") -> None:
        """Raise StateError when a file of these names is there that this program did not write."""
        known, folder = self._record.files.get(place, {}), self.path / place
        for name in names:
            if name not in known:
                check_free(folder / name)

    def begin(self) -> None:
        """Record the folder; with `fresh`, delete what earlier calls made."""
        if self._fresh:
            self._delete_recorded()
            self._record = OutputRecord(
                signature=dict(self._signature),
                files={place: {} for place in self._record.files},
                inputs=self._inputs,
            )
        if any(self._record.files.values()):
            logger.info(f"{self.path}: continuing with what is there; --fresh would replace it")
        self._save()

    def __enter__(self) -> "OutputFolder":
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):  # Ctrl-C does not wait for hashes; the next call makes them
            self._close()

    def claim(self, names: Iterable[str], *places: Place) -> None:
        """Record files before they are written; StateError when one is there and is not as this program left it."""
        names = list(names)
        for place in places:
            self.check_free(names, place)
            for name in names:
                self._check_unchanged(place, name)
        for place in places:
            self._record.files.setdefault(place, {}).update(dict.fromkeys(names))
        self._save()

    def _close(self) -> None:
        """Record the hashes of the files that are new, and forget those that were not written after all."""
        for place, files in self._record.files.items():
            for name, digest in list(files.items()):
                path = self.path / place / name
                if not path.is_file():
                    del files[name]
                elif digest is None and name not in TABLES:
                    files[name] = sha256(path)
        self._save()

    def _save(self) -> None:
        write_record(self._file, self._record)

    def _check_folders(self) -> None:
        """Refuse folders and notes that this program did not make."""
        state = self.path / "state"
        paths = [self.path / place for place in ("mask", "overlay", "pages") if place not in self._record.files]
        if not self._file.is_file():
            paths += [state / "slides", state / "work", state / "patches.jsonl"]
        for path in paths:
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise StateError(f"{path} is there but was not made by ./infer.sh; {ADVICE}")

    def _check_unchanged(self, place: Place, name: str) -> None:
        check_unchanged(self.path / place / name, self._record.files.get(place, {}).get(name))

    def _recorded(self) -> list[tuple[Place, str]]:
        return [(place, name) for place, files in self._record.files.items() for name in files]

    def _delete_recorded(self) -> None:
        """Delete what earlier calls wrote and recorded; StateError, before anything is deleted, for what was changed."""
        for place, name in self._recorded():
            self._check_unchanged(place, name)
        (self.path / "state" / "patches.jsonl").unlink(missing_ok=True)
        for place, name in self._recorded():
            if (path := self.path / place / name).is_symlink() or path.is_file():
                path.unlink()


def check_unchanged(path: Path, digest: str | None) -> None:
    """Raise StateError when a file is there and has not the recorded content; without one, it was not complete."""
    if digest is not None and path.is_file() and sha256(path) != digest:
        raise StateError(f"{path} was changed since ./infer.sh wrote it; {ADVICE}")


def check_free(path: Path) -> None:
    """Raise StateError when there is a file that this program did not write."""
    if path.exists() or path.is_symlink():
        raise StateError(f"{path} is there but was not made by ./infer.sh; {ADVICE}")
