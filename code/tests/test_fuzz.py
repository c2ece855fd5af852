"""Any bytes give a result or an error of our own: never another exception, a hang, or a gigabyte of memory.

A few inputs of each kind; code/benchmarks/fuzz.py tries as many as asked for.
"""

import io
import struct
import zipfile
import zlib

import pytest

from epsam.errors import EpsamError
from tests.fuzz_kinds import KINDS, XML
from tests.fuzzing import MAX_MESSAGE, limited_memory

INPUTS = 60


@pytest.fixture(autouse=True)
def one_more_gigabyte():
    with limited_memory():
        yield


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", KINDS)
def test_any_bytes_are_read_or_refused(tmp_path, name):
    kind = KINDS[name](tmp_path / "f")
    kind.write_bytes(kind.whole)
    kind.read()
    faults = []
    for number in range(max(2, INPUTS // kind.one_in)):
        kind.write(name, 0, number)
        if fault := kind.fault():
            faults.append(f"input {number}: {fault}")
    assert not faults


def _yaml_bomb() -> str:
    """A list of lists of lists ... of nine each, ten deep: a kilobyte that reads as 3,486,784,401 values."""
    lines = ["x:", "  - &a0 [y, y, y, y, y, y, y, y, y]"]
    lines += [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join([*lines, "name: *a9"])


def _png_bomb(side: int = 24_000) -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _npz_bomb() -> bytes:
    """Maps that claim 2**40 values."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1, 1), }"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for part in ("names", "maps"):
            archive.writestr(f"{part}.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    return stream.getvalue()


HOSTILE = {
    "settings": [
        "[" * 100_000,
        "name: 2024-13-45",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: 0b_",
        f"a: {'1' * 5000}",
        "{1: 2, retrain: {3: 4}}",
        _yaml_bomb(),
        'name: "\\ud800"',
        "!!python/object/apply:os.abort []",
    ],
    "json_value": ["[" * 100_000, '{"a":' * 5000, "1" * 5000, b"\xed\xa0\x80"],
    "table": ['slide,x\n"' + "a" * 200_000, "slide,slide\n1,2,3\n", b"\xff\xfe"],
    "labels_csv": ["slide,x,y,label\na,1e999,0,1\n", "slide,x,y,label\na,0,0,2\n", "slide;x;y;label\n;0;0;1\n"],
    "slide_table": ["slide,mpp\na,1e999\n", "slide,mpp\na,nan\n", "slide\na,b,c\n", "slide,tissue_threshold\na,²\n"],
    "annotation": [
        "<a>" * 50_000,
        "<ASAP_Annotations/>",
        '<!DOCTYPE a [<!ENTITY b SYSTEM "/dev/zero">]><a>&b;</a>',
        XML.replace(b'"9,5"', b'"9e99999"'),
        XML.replace(b'"0"', b'"9' + b"9" * 5000 + b'"', 1),
    ],
    "patch_image": [_png_bomb(), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"],
    "decoder": [b"PK\x03\x04" + bytes(40), b"\x80\x04cos\nabort\n)R.", b"PK\x05\x06" + bytes(18)],
    "maps": [_npz_bomb(), b"PK\x03\x04" + bytes(40), b"PK\x05\x06" + bytes(18)],
    "stage_record": ["{}", '{"done": true, "signature": []}', "[]", "1" * 5000],
    "inference_record": [
        '{"signature": {}, "files": {"../..": {"x": null}}, "slides": []}',
        '{"signature": {}, "files": {"": {"../x": null}}, "slides": []}',
        '{"signature": {}, "files": {}, "slides": ["../../x"]}',
    ],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "number"), [(name, n) for name, files in HOSTILE.items() for n in range(len(files))])
def test_files_made_to_do_harm_are_refused(tmp_path, name, number):
    content = HOSTILE[name][number]
    kind = KINDS[name](tmp_path / "f")
    kind.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EpsamError, match=kind.path.stem) as caught:
        kind.read()
    assert len(str(caught.value)) < MAX_MESSAGE
