"""Small real slides and ASAP XML for tests: tiled pyramidal TIFF as scanners write it, drawn here."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import tifffile

GLASS = (244, 243, 245)
TISSUE = (205, 120, 180)
TUMOUR = (120, 60, 150)
GROUPS = {"tumour": ["Tumor"], "hole": ["Exclusion"]}

Box = tuple[int, int, int, int]


def draw(
    size: tuple[int, int] = (768, 640), tissue: Box = (64, 64, 704, 576), tumour: Iterable[Box] = (), seed: int = 0
) -> np.ndarray:
    """(height, width, 3) uint8 RGB: glass, a box of tissue, boxes of tumour (x0, y0, x1, y1), some noise."""
    image = np.full((size[1], size[0], 3), GLASS, np.uint8)
    for box, colour in [(tissue, TISSUE), *((b, TUMOUR) for b in tumour)]:
        x0, y0, x1, y1 = box
        image[y0:y1, x0:x1] = colour
    noise = np.random.default_rng(seed).integers(-6, 7, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_slide(
    path: Path,
    image: np.ndarray,
    *,
    mpp: float | None = 0.25,
    tile: int = 128,
    levels: int = 3,
    compression: str = "jpeg",
    missing: Sequence[int] = (),
    unit: str = "CENTIMETER",
    description: str | None = None,
    software: str | None = None,
) -> Path:
    """Write RGB uint8 as a tiled TIFF whose levels are top-level pages, each half the one before.

    missing: numbers of level-0 tiles that the file leaves out; mpp None: the file says no resolution.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            if level:
                image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
            per_unit = {"CENTIMETER": 1e4, "INCH": 25400, "NONE": 1e4}[unit] / (mpp or 1) / 2**level
            tiff.write(
                tiles_of(image, tile, missing if level == 0 else ()),
                shape=image.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression,
                subfiletype=1 if level else 0,
                metadata=None,
                software=software,
                description=description if level == 0 else None,
                **({"resolution": (per_unit, per_unit), "resolutionunit": unit} if mpp else {}),
            )
    return path


PHILIPS = """<?xml version="1.0" encoding="UTF-8" ?>
<DataObject ObjectType="DPUfsImport">
 <Attribute Name="DICOM_MANUFACTURER" Group="0x0008" Element="0x0070" PMSVR="IString">PHILIPS</Attribute>
 <Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>
  <DataObject ObjectType="DPScannedImage">
   <Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" PMSVR="IString">WSI</Attribute>
   <Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">"{mm}" "{mm}"</Attribute>
   <Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" PMSVR="IDataObjectArray">
    <Array>{levels}</Array></Attribute>
  </DataObject></Array></Attribute>
</DataObject>"""
PHILIPS_LEVEL = """<DataObject ObjectType="PixelDataRepresentation">
 <Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">"{mm}" "{mm}"</Attribute>
 <Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x1001" Element="0x8B02" PMSVR="IUInt16">{n}</Attribute>
</DataObject>"""


def philips(levels: int = 3, mpp: float = 0.25) -> dict[str, str]:
    """Arguments of write_slide for a TIFF as Philips scanners export it."""
    inner = "".join(PHILIPS_LEVEL.format(mm=mpp * 2**n / 1000, n=n) for n in range(levels))
    return {"description": PHILIPS.format(levels=inner, mm=mpp / 1000), "software": "Philips DP v1.0"}


def write_leica(
    path: Path, image: np.ndarray, corner: tuple[int, int], glass: tuple[int, int], mpp: float = 0.5
) -> Path:
    """Write RGB uint8 as Leica's SCN: an area scanned at `corner` (x, y) of a glass of (width, height) px.

    OpenSlide shows the whole glass and reports the area as its bounds.
    """

    def picture(name: str, number: int, x: int, y: int, width: int, height: int, scale: int) -> str:
        nm = round(mpp * 1000)
        return (
            f'<image name="{name}"><device model="model"/><pixels sizeX="{width // scale}" sizeY="{height // scale}">'
            f'<dimension sizeX="{width // scale}" sizeY="{height // scale}" r="0" ifd="{number}"/></pixels>'
            f'<view sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{x * nm}" offsetY="{y * nm}" spacingZ="0"/>'
            "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
            "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    width, height = glass
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="slide" sizeX="{width * round(mpp * 1000)}" sizeY="{height * round(mpp * 1000)}">'
        + picture("macro", 0, 0, 0, width, height, 16)
        + picture("scan", 1, *corner, image.shape[1], image.shape[0], 1)
        + "</collection></scn>"
    )
    per_cm = 1e4 / mpp
    with tifffile.TiffWriter(path) as tiff:
        for pixels, scale in ((np.full((height // 16, width // 16, 3), GLASS, np.uint8), 16), (image, 1)):
            tiff.write(
                pixels,
                tile=(64, 64),
                photometric="rgb",
                compression="jpeg",
                metadata=None,
                software=None,
                description=xml if scale > 1 else None,
                resolution=(per_cm / scale, per_cm / scale),
                resolutionunit="CENTIMETER",
            )
    return path


def tiles_of(image: np.ndarray, tile: int, missing: Sequence[int] = ()) -> Iterable[np.ndarray | None]:
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, 0, -height % tile, 0, -width % tile, cv2.BORDER_REPLICATE)
    places = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
    for number, (y, x) in enumerate(places):
        yield None if number in missing else np.ascontiguousarray(padded[y : y + tile, x : x + tile])


def spoil_tag(path: Path) -> Path:
    """Have a TIFF claim tiles of 2 billion columns: OpenSlide aborts the process that opens it."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].tags["TileWidth"].offset
    with path.open("r+b") as stream:
        stream.seek(offset + 8)  # behind the tag's code, type and count
        stream.write(struct.pack("<I", 2**31 - 1))
    return path


def spoil_tile(path: Path, number: int) -> None:
    """Overwrite a level-0 tile of a TIFF with bytes that no decoder understands."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x00\xff\xd9" * (count // 3))


def write_claiming(path: Path, side: int = 4_000_000, tile: int = 16384) -> Path:
    """Write a TIFF of less than a megabyte that claims `side` x `side` px and holds none of its tiles."""
    tiles = (-(-side // tile)) ** 2
    entries = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 3, 0),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (277, 3, 1, 3),
        (322, 4, 1, tile),
        (323, 4, 1, tile),
        (324, 4, tiles, 0),
        (325, 4, tiles, 0),
    ]
    data = 8 + 2 + 12 * len(entries) + 4
    depths, offsets, counts = data, data + 8, data + 8 + 4 * tiles
    places = {258: depths, 324: offsets, 325: counts}
    directory = b"".join(
        struct.pack("<HHII", tag, kind, count, places.get(tag, value)) for tag, kind, count, value in entries
    )
    path.write_bytes(
        struct.pack("<2sHIH", b"II", 42, 8, len(entries))
        + directory
        + bytes(4)
        + struct.pack("<4H", 8, 8, 8, 0)
        + bytes(8 * tiles)
    )
    return path


def box_points(box: Box) -> list[tuple[float, float]]:
    """Corners of x0, y0, x1, y1."""
    x0, y0, x1, y1 = box
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def write_xml(
    path: Path,
    outlines: Iterable[tuple[str, Sequence[tuple[object, object]]]],
    declared: Sequence[str] = ("Tumor", "Exclusion"),
) -> Path:
    """Write ASAP XML: outlines are (group, points); coordinates go into the file as they print."""
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    for number, (group, points) in enumerate(outlines):
        node = ET.SubElement(
            annotations, "Annotation", Name=f"Annotation {number}", Type="Polygon", PartOfGroup=group, Color="#F4FA58"
        )
        coordinates = ET.SubElement(node, "Coordinates")
        for order, (x, y) in enumerate(points):
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=str(x), Y=str(y))
    groups = ET.SubElement(root, "AnnotationGroups")
    for name in declared:
        ET.SubElement(ET.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color="#00ff00"), "Attributes")
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(root).write(path, xml_declaration=True, encoding="utf-8")
    return path


TUMOURS: tuple[Box, ...] = ((128, 112, 300, 260), (420, 330, 620, 500))


def make_dataset(folder: Path, tumour: int = 4, normal: int = 1, first: int = 1) -> Path:
    """Slides tumor_001.tif ... with XML and normal_001.tif ... in Camelyon's folders; gives `folder`."""
    for number in range(first, first + tumour):
        shift = 8 * number
        boxes = [(x0 + shift, y0, x1 + shift, y1) for x0, y0, x1, y1 in TUMOURS]
        write_slide(folder / "images" / f"tumor_{number:03d}.tif", draw(tumour=boxes, seed=number))
        write_xml(folder / "annotations" / f"tumor_{number:03d}.xml", [("Tumor", box_points(b)) for b in boxes])
    for number in range(first, first + normal):
        write_slide(folder / "images" / f"normal_{number:03d}.tif", draw(seed=100 + number))
    return folder
