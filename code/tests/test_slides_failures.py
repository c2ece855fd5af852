"""Whatever is wrong with one slide costs it alone: the others are cut, and slides.csv says why."""

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL.Image import DecompressionBombError

from epsam.errors import DataError
from epsam.patches import candidates as scan_module
from epsam.runtime.files import atomic, remove_temporaries_of
from epsam.slides.openslide import OpenSlideSlide
from epsam.stages.preprocess import preprocess
from epsam.workspace import Workspace
from tests.slide_factory import box_points, draw, make_dataset, spoil_tag, write_claiming, write_slide, write_xml
from tests.test_slides_preprocess import config, slides, table, written

BOX = (128, 112, 300, 260)


@pytest.fixture
def ws(tmp_path):
    workspace = Workspace(tmp_path, "mine")
    make_dataset(workspace.dataset)
    return workspace


def bytes_named(folder: Path, name: bytes) -> Path:
    return Path(os.fsdecode(bytes(folder) + b"/" + name))


def long_name(ws) -> str:
    name = "tumor_" + "9" * 239
    write_slide(ws.slides / f"{name}.tif", draw(tumour=[BOX]))
    write_xml(ws.annotations / f"{name}.xml", [("Tumor", box_points(BOX))])
    return name


def name_that_is_no_text(ws) -> str:
    (ws.slides / "tumor_004.tif").rename(bytes_named(ws.slides, b"tumor_\xff.tif"))
    (ws.annotations / "tumor_004.xml").rename(bytes_named(ws.annotations, b"tumor_\xff.xml"))
    return "tumor_\\udcff"


def outline_without_coordinates(ws) -> str:
    write_xml(ws.annotations / "tumor_004.xml", [("Tumor", [])])
    return "tumor_004"


def claims_four_million_pixels(ws) -> str:
    write_claiming(ws.slides / "tumor_004.tif")
    return "tumor_004"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (long_name, "has 245 bytes, at most 200"),
        (name_that_is_no_text, "is not UTF-8"),
        (outline_without_coordinates, "nothing in it is tumour"),
        (claims_four_million_pixels, "claims 4000000 x 4000000 px"),
    ],
)
def test_a_bad_slide_fails_and_the_others_are_cut(ws, make, reason, caplog):
    bad = make(ws)
    preprocess(config(), ws)
    rows = slides(ws)
    assert {name for name, row in rows.items() if row["status"] != "ok"} == {bad}
    assert rows[bad]["status"] == "failed"
    assert reason in rows[bad]["reason"]
    assert f"1 of {len(rows)} slides failed, the others are done" in caplog.messages[-1]
    assert all(int(row["patches_positive"]) for name, row in rows.items() if name.startswith("tumor") and name != bad)


RAISED = [
    MemoryError(),
    ValueError("cannot reshape"),
    zlib.error("incorrect header"),
    struct.error("unpack"),
    OverflowError("too large"),
    RecursionError("maximum depth"),
    DecompressionBombError("a bomb"),
    OSError(errno.EIO, "Input/output error"),
    ZeroDivisionError("division by zero"),
]


def read_that_raises(monkeypatch, error: BaseException, from_call: int = 0) -> None:
    """Have reads of tumor_004 raise `error`, from one of them on."""
    real, calls = OpenSlideSlide._read_inside, []

    def read(self, *args):
        calls.append(self.path.stem == "tumor_004")
        if calls[-1] and sum(calls) > from_call:
            raise error
        return real(self, *args)

    monkeypatch.setattr(OpenSlideSlide, "_read_inside", read)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_what_a_reader_raises_is_given_as_the_reason(ws, error, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    read_that_raises(monkeypatch, error)
    preprocess(config(), ws)
    assert type(error).__name__ in slides(ws)["tumor_004"]["reason"]
    assert [row["slide"] for row in slides(ws).values() if row["status"] == "failed"] == ["tumor_004"]
    shown = [record for record in caplog.records if "Traceback" in record.message]
    assert [record.levelname for record in shown] == ["DEBUG"]


def test_a_slide_that_aborts_openslide_costs_itself_alone(ws):
    spoil_tag(ws.slides / "tumor_004.tif")
    preprocess(config(workers=1), ws)
    rows = slides(ws)
    assert [name for name, row in rows.items() if row["status"] == "failed"] == ["tumor_004"]
    assert "the process that read it died" in rows["tumor_004"]["reason"]


def test_windows_that_raise_are_left_out(ws, monkeypatch):
    preprocess(config(), ws)
    for path in ws.dataset.rglob("*/image/tumor_004*"):
        path.unlink()
    read_that_raises(monkeypatch, MemoryError(), from_call=3)  # the first reads are those of opening
    preprocess(config(), ws)
    row = slides(ws)["tumor_004"]
    assert row["status"] == "ok"
    assert "windows cannot be read and are left out" in row["reason"]
    assert "MemoryError" in row["reason"]


def test_a_sheet_that_cannot_be_drawn_costs_the_sheet_alone(ws, monkeypatch, caplog):
    from epsam.stages import preprocess as extraction

    real = extraction.write_slide_sheet

    def write_sheet(record, *args):
        if record.slide == "tumor_004":
            raise ValueError("no such font")
        real(record, *args)

    monkeypatch.setattr(extraction, "write_slide_sheet", write_sheet)
    preprocess(config(), ws)
    assert all(row["status"] == "ok" for row in slides(ws).values())
    assert "tumor_004: its QA sheet failed" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EACCES, "Permission denied", "/elsewhere"),
    ],
)
def test_what_is_no_fault_of_a_slide_stops_the_run(ws, error, monkeypatch):
    read_that_raises(monkeypatch, error)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DataError):
        preprocess(config(), ws)


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[:900] + bytes(200) + data[1100:],
    "empty": lambda data: b"",
    "foreign": lambda data: b"PK\x03\x04" + bytes(1000),
}
CHANGED = {
    "other length": {"fraction": np.zeros(1)},
    "other type": {"x": np.array([1.5])},
    "outside": {"fraction": np.array([7.0])},
    "facts": {"facts": np.array("[" * 100_000)},
    "bomb": {"x": np.zeros(40_000_000, np.int64)},
    "picture": {"thumbnail": np.zeros(3, np.uint8)},
}


@pytest.mark.parametrize("how", [*DAMAGE, *CHANGED])
def test_a_damaged_scan_is_made_anew(ws, how):
    preprocess(config(), ws)
    before, rows = written(ws), table(ws.patches_csv)
    file = ws.state / "preprocess" / "tumor_003.npz"
    if how in DAMAGE:
        file.write_bytes(DAMAGE[how](file.read_bytes()))
    else:
        with np.load(file) as kept:
            arrays = dict(kept) | CHANGED[how]
        np.savez_compressed(file, **arrays)
    preprocess(config(), ws)
    assert written(ws) == before
    assert table(ws.patches_csv) == rows
    with np.load(file) as kept:
        assert len(kept["x"]) == len(kept["fraction"]) == sum(row["slide"] == "tumor_003" for row in rows)


def test_temporary_names_fit_where_the_name_itself_does(tmp_path):
    left = []
    for stem, suffix in (
        ("片" * 80, ".png"),
        ("片" * 79 + "x", ".png"),
        ("a", "." + "b" * 250),
        ("a", "." + "b" * 249),
    ):
        path = tmp_path / (stem + suffix)
        with atomic(path) as temporary:
            temporary.write_text("x")
        assert path.read_text() == "x"
        temporary.write_text("left by a process that was killed")
        left.append((path, temporary))
    for number, (path, temporary) in enumerate(left, 1):
        remove_temporaries_of(path)
        assert not temporary.exists()
        assert len(list(tmp_path.iterdir())) == 2 * len(left) - number, "those of names that begin alike stay"


def test_scans_are_kept_between_calls(ws, monkeypatch):
    preprocess(config(), ws)
    monkeypatch.setattr(scan_module, "_find_candidates", None)
    preprocess(config(), ws)
    assert all(row["status"] == "ok" for row in slides(ws).values())
