"""Which files together are one slide: scanners that write DICOM make a file of each level, label and overview."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DICOM_SUFFIX = ".dcm"
SERIES_INSTANCE_UID = 0x0020000E


@dataclass(frozen=True)
class SlideFiles:
    """A slide and the files that it consists of."""

    path: Path
    """The file to open, which also names the slide; a reader finds the others beside it."""
    files: tuple[Path, ...]
    """All of them, `path` among them, sorted."""


def group_slides(paths: Iterable[Path]) -> list[SlideFiles]:
    """The slides that files with slide suffixes belong to, sorted by the path that is opened.

    DICOM files of one SeriesInstanceUID are one slide, named by the largest file, which is that of level 0; copies of
    a series in several folders are one slide too. A DICOM file that tells no identifier stands for itself.
    """
    series: dict[str, list[Path]] = defaultdict(list)
    slides = []
    for path in paths:
        uid = series_uid(path) if path.suffix.lower() == DICOM_SUFFIX else ""
        if uid:
            series[uid].append(path)
        else:
            slides.append(SlideFiles(path, (path,)))
    for files in series.values():
        files.sort(key=lambda path: (-path.stat().st_size, path))
        slides.append(SlideFiles(files[0], tuple(sorted(files))))
    return sorted(slides, key=lambda slide: slide.path)


def series_uid(path: Path) -> str:
    """SeriesInstanceUID of a DICOM file; empty where it cannot be read, or is none: its reader says why.

    By pydicom, which stops behind this element; OpenSlide would read the headers of all files in the folder, tables of
    frames included, for each of them.
    """
    from pydicom.filereader import read_partial

    try:
        with path.open("rb") as stream:
            header = read_partial(
                stream,
                stop_when=lambda tag, *_: tag > SERIES_INSTANCE_UID,
                specific_tags=[SERIES_INSTANCE_UID],
            )
        return str(header[SERIES_INSTANCE_UID].value or "")
    except Exception:  # noqa: BLE001 pydicom raises many kinds for what is no DICOM; opening the slide says what it is
        return ""
