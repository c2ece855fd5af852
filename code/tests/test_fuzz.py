"""Any bytes give a result or an error of our own: never another exception."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epsam.config import load_config
from epsam.errors import EpsamError
from epsam.runtime.checkpoints import load_weights
from epsam.runtime.files import read_csv, read_image, read_json, read_mask
from epsam.slides import load_annotation, open_slide

GROUPS = {"tumour": ["Tumor"], "hole": ["Exclusion"]}
XML = b"""<?xml version="1.0"?><ASAP_Annotations><Annotations>
<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor"><Coordinates>
<Coordinate Order="0" X="1" Y="1"/><Coordinate Order="1" X="9,5" Y="1"/><Coordinate Order="2" X="5" Y="8"/>
</Coordinates></Annotation></Annotations>
<AnnotationGroups><Group Name="Tumor" PartOfGroup="None"/></AnnotationGroups></ASAP_Annotations>"""
YAML = b"name: x\npatches: {size_px: 256, train: {per_bin: 3}}\nretrain: {rounds: 1, ids: 0.5}\n"
CSV = b"slide,x,y\ntumor_001,1,2\n"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000002000000020802000000fdd49a73"
    "0000001649444154789c63f8cfc0c0f09f81818181e13f0300170b02fe2f0dd2a00000000049454e44ae426082"
)
TIFF = b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x02\0\0\0\0\0\0\0"


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
    "image.png": (PNG, read_image),
    "mask.png": (PNG, read_mask),
    "slide.tif": (TIFF, _read_slide),
    "state.json": (b'{"stage": "embed", "done": true}', read_json),
    "weights.pth": (b"PK\x03\x04" + bytes(40), load_weights),
}


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
