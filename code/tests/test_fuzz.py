"""Any bytes give a result or an error of our own: never another exception, a hang, or a gigabyte of memory."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epsam.cam import ActivationMap, load_cams, save_cams
from epsam.config_file import load_config
from epsam.errors import EpsamError
from epsam.runtime.checkpoints import load_weights, save_weights
from epsam.runtime.files import read_csv, read_image, read_json, read_mask
from epsam.runtime.settings import read_note
from epsam.runtime.state import read_state
from epsam.slides import load_annotation, open_slide
from epsam.slides.found import read_overrides

GROUPS = {"tumour": ["Tumor"], "hole": ["Exclusion"]}
XML = b"""<?xml version="1.0"?><ASAP_Annotations><Annotations>
<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor"><Coordinates>
<Coordinate Order="0" X="1" Y="1"/><Coordinate Order="1" X="9,5" Y="1"/><Coordinate Order="2" X="5" Y="8"/>
</Coordinates></Annotation></Annotations>
<AnnotationGroups><Group Name="Tumor" PartOfGroup="None"/></AnnotationGroups></ASAP_Annotations>"""
YAML = b"name: x\npatches: {size_px: 256, train: {per_bin: 3}}\nretrain: {rounds: 1, ids: 0.5}\n"
CSV = b"slide,x,y\ntumor_001,1,2\n"
OVERRIDES = b"slide,split,mpp,tissue_threshold,exclude\ntumor_001,train,0.25,12,\nb,,,,blurred\n"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000002000000020802000000fdd49a73"
    "0000001649444154789c63f8cfc0c0f09f81818181e13f0300170b02fe2f0dd2a00000000049454e44ae426082"
)
TIFF = b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x02\0\0\0\0\0\0\0"
STATE = b'{"stage": "embed", "done": true, "signature": {"epsam": "1"}}'
NOTE = b'{"settings": {"name": "x"}, "sha256": "00"}'
LIMIT_BYTES = 2**30


def _written(write) -> bytes:
    """What `write(path)` writes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


def _spoilt(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` with a few bytes changed, cut off or put in; or any bytes at all."""
    place = st.integers(0, len(whole))
    cut = st.builds(lambda i, j, put: whole[: min(i, j)] + put + whole[max(i, j):], place, place, st.binary(max_size=12))
    flip = st.builds(lambda i, b: whole[:i] + bytes([b]) + whole[i + 1:], place, st.integers(0, 255))
    return st.one_of(cut, flip, st.binary(max_size=200))


def _read_slide(path):
    with open_slide(path, backend="openslide") as slide:
        slide.read(0, 0, 8, 8)


READERS = {
    "annotation.xml": (XML, lambda p: load_annotation(p, GROUPS).mask(0, 0, 16, 16)),
    "settings.yaml": (YAML, load_config),
    "table.csv": (CSV, lambda p: read_csv(p, ["slide", "x"])),
    "overrides.csv": (OVERRIDES, read_overrides),
    "image.png": (PNG, read_image),
    "mask.png": (PNG, read_mask),
    "slide.tif": (TIFF, _read_slide),
    "value.json": (b'{"stage": "embed", "done": true}', read_json),
    "embed.json": (STATE, lambda p: read_state(p.parent, "embed")),
    "weights.pth.json": (NOTE, lambda p: read_note(p.with_suffix(""))),
    "weights.pth": (_written(lambda p: save_weights(p, {}, {})), load_weights),
    "maps.npz": (_written(lambda p: save_cams(p, {"a_1": ActivationMap(np.eye(3), 0.5)})), load_cams),
}


@pytest.fixture(autouse=True)
def limited_memory():
    """No more than another gigabyte for this process while a test runs: more is a MemoryError, which is not ours."""
    resource = pytest.importorskip("resource")
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory, name, data):
    whole, read = READERS[name]
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(data.draw(_spoilt(whole)))
    with contextlib.suppress(EpsamError):
        read(path)


def _yaml_bomb() -> str:
    """A list of lists of lists ... of nine each, ten deep: a kilobyte that reads as 3,486,784,401 values."""
    lines = ["x:", "  - &a0 [y, y, y, y, y, y, y, y, y]"]
    lines += [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join([*lines, "name: *a9"])


def _png_bomb(side: int = 24_000) -> bytes:
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes((side // 8 + 1) * side), 9)) + PNG[-12:]


def _npz_bomb() -> bytes:
    """Maps that claim 2**40 values."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1, 1), }"
    stream = io.BytesIO()
    import zipfile

    with zipfile.ZipFile(stream, "w") as archive:
        for part in ("names", "maps"):
            archive.writestr(f"{part}.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    return stream.getvalue()


HOSTILE = {
    "settings.yaml": ["[" * 100_000, "name: 2024-13-45", "a: !!bool x", "a: !!timestamp x", "a: 0b_", f"a: {'1' * 5000}",
                      "{1: 2, retrain: {3: 4}}", _yaml_bomb(), 'name: "\\ud800"', "!!python/object/apply:os.abort []"],
    "value.json": ["[" * 100_000, '{"a":' * 5000, "1" * 5000, b"\xed\xa0\x80"],
    "table.csv": ['slide,x\n"' + "a" * 200_000, "slide,slide\n1,2,3\n", b"\xff\xfe"],
    "overrides.csv": ["slide,mpp\na,1e999\n", "slide,mpp\na,nan\n", "slide\na,b,c\n", "slide,tissue_threshold\na,²\n"],
    "annotation.xml": ["<a>" * 50_000, "<ASAP_Annotations/>", '<!DOCTYPE a [<!ENTITY b SYSTEM "/dev/zero">]><a>&b;</a>',
                       XML.replace(b'"9,5"', b'"9e99999"'), XML.replace(b'"0"', b'"9' + b"9" * 5000 + b'"', 1)],
    "image.png": [_png_bomb(), PNG[:40], b"\xff\xd8\xff\xe0"],
    "weights.pth": [b"PK\x03\x04" + bytes(40), b"\x80\x04cos\nabort\n)R.", b"PK\x05\x06" + bytes(18)],
    "maps.npz": [_npz_bomb(), b"PK\x03\x04" + bytes(40), b"PK\x05\x06" + bytes(18)],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "number"), [(name, n) for name, files in HOSTILE.items() for n in range(len(files))])
def test_files_made_to_do_harm_are_refused(tmp_path, name, number):
    content = HOSTILE[name][number]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EpsamError, match=path.stem) as caught:
        READERS[name][1](path)
    assert len(str(caught.value)) < 2000
