"""QA sheets: one picture per slide and a page of them all, to look at before the GPU is started."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np

from epsam.config.schema import Config
from epsam.patches.candidates import SlideCandidates
from epsam.patches.manifest import SlideRecord
from epsam.runtime.files import write_png, write_text
from epsam.slides.annotation import read_annotation
from epsam.slides.openslide import bounds_origin
from epsam.workspace import Workspace

Colour = tuple[int, int, int]


TISSUE, TUMOUR, HOLE = (0, 140, 60), (220, 0, 0), (255, 140, 0)


POSITIVE, EXTRA, NEGATIVE = (0, 60, 255), (0, 190, 230), (255, 215, 0)


FILL = 0.1
"""Opacity of windows, small enough to see the tissue below."""


WIDE_PX = 24
"""Side from which windows are framed by two pixels."""


MIN_PX = 640
"""Least width of a sheet and least longer side of its picture; smaller thumbnails are enlarged."""


LINE_PX = 24


FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_slide_sheet(
    record: SlideRecord, scan: SlideCandidates, purpose: np.ndarray, config: Config, folder: Path
) -> None:
    """Write `folder`/<slide>.png: thumbnail, tissue outline, annotation, chosen windows, and what the colours mean."""
    enlarge = max(1, MIN_PX / max(scan.thumbnail.shape))
    size = tuple(round(side * enlarge) for side in scan.thumbnail.shape[1::-1])
    picture = cv2.resize(scan.thumbnail, size, interpolation=cv2.INTER_CUBIC)
    tissue = cv2.resize(scan.tissue.astype(np.uint8) * 255, size) >> 7
    scale = picture.shape[1] / scan.size[0]
    windows = {
        "negative": (NEGATIVE, (purpose == "all") & (scan.fraction == 0)),
        "positive, classifier only": (EXTRA, purpose == "classifier"),
        "positive": (POSITIVE, (purpose == "all") & (scan.fraction > 0)),
    }
    for colour, chosen in windows.values():
        _draw_windows(picture, scan, chosen, scale, colour)
    lines = {"tissue": (TISSUE, cv2.findContours(tissue, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0])}
    if record.annotation:
        polygons = read_annotation(
            record.annotation, config.slides.groups, bounds_origin(record.path), scan.size
        ).polygons
        for kind, colour in (("tumour", TUMOUR), ("hole", HOLE)):
            lines[kind] = colour, [np.rint(p.points * scale).astype(np.int32) for p in polygons if p.kind == kind]
    for colour, outlines in lines.values():
        cv2.polylines(picture, outlines, True, (255, 255, 255), 3, cv2.LINE_AA)
        cv2.polylines(picture, outlines, True, colour, 2, cv2.LINE_AA)
    legend = [(kind, colour) for kind, (colour, outlines) in lines.items() if len(outlines)]
    legend += [(f"{chosen.sum()} {kind}", colour) for kind, (colour, chosen) in windows.items()]
    write_png(folder / f"{record.slide}.png", _with_legend(picture, legend, _ruler(scan, scale)))


def _draw_windows(picture: np.ndarray, scan: SlideCandidates, chosen: np.ndarray, scale: float, colour: Colour) -> None:
    """Tint and frame windows; each frame lies within its window, so that neighbours can be told apart."""
    tint = picture.copy()
    corners = [(round(x * scale), round(y * scale)) for x, y in zip(scan.x[chosen], scan.y[chosen], strict=True)]
    side = max(2, round(scan.read_px * scale) - 1)
    for left, top in corners:
        cv2.rectangle(tint, (left, top), (left + side - 1, top + side - 1), colour, -1)
    cv2.addWeighted(tint, FILL, picture, 1 - FILL, 0, dst=picture)
    for left, top in corners:
        for inset in range(1 + (side >= WIDE_PX)):
            cv2.rectangle(
                picture, (left + inset, top + inset), (left + side - 1 - inset, top + side - 1 - inset), colour
            )


def _ruler(scan: SlideCandidates, scale: float) -> tuple[str, int]:
    """A length in words and in pixels of the picture: a round one of at most a fifth of its width, or one window."""
    if scan.mpp is None:
        return f"{scan.read_px} px", round(scan.read_px * scale)
    most = max(1, scan.size[0] * scan.mpp[0] / 5)
    length = max(um for power in range(6) for um in (10**power, 2 * 10**power, 5 * 10**power) if um <= most)
    return f"{length / 1000:g} mm" if length >= 1000 else f"{length} um", round(length / scan.mpp[0] * scale)


def _with_legend(picture: np.ndarray, legend: Sequence[tuple[str, Colour]], ruler: tuple[str, int]) -> np.ndarray:
    """The picture above lines with the scale bar and the legend, as many as the width needs."""
    height, width = picture.shape[0], max(MIN_PX, picture.shape[1])
    x, y, marks = 8, height + 8, []
    for text, colour, mark_px in [(ruler[0], None, ruler[1]), *((text, colour, 12) for text, colour in legend)]:
        text_px = cv2.getTextSize(text, FONT, 0.45, 1)[0][0]
        if x > 8 and x + mark_px + text_px + 13 > width:
            x, y = 8, y + LINE_PX
        marks.append((x, y, text, colour, mark_px))
        x += mark_px + text_px + 23
    sheet = np.full((y + LINE_PX - 4, width, 3), 255, np.uint8)
    sheet[:height, : picture.shape[1]] = picture
    for x, y, text, colour, mark_px in marks:
        thin = 0 if colour else 4
        cv2.rectangle(sheet, (x, y + thin), (x + mark_px, y + 12 - thin), colour or (0, 0, 0), -1)
        cv2.putText(sheet, text, (x + mark_px + 5, y + 11), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet


PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Slides of {{ name }}</title>
<style>body{font:15px/1.4 system-ui,sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.2em .8em;
text-align:left;border-bottom:1px solid #ccc}figure{margin:2em 0}img{max-width:100%;border:1px solid #ccc}
.failed{color:#b00}</style>
<h1>Slides of {{ name }}</h1>
<p>Look at the outlines: that of the tissue should hold all tissue and no pen or glass, that of the tumour should lie on
the tumour.</p>
<table><tr><th>slide<th>split<th>status<th>positive<th>negative<th>size<th>um/px<th>reader<th>note</tr>
{% for r in records %}<tr{% if r.status == "failed" %} class="failed"{% endif %}><td>
{%- if r.status == "ok" %}<a href="#{{ r.slide }}">{{ r.slide }}</a>{% else %}{{ r.slide }}{% endif %}<td>{{ r.split }}
<td>{{ r.status }}<td>{{ r.patches_positive }}<td>{{ r.patches_negative }}<td>{{ r.width }} x {{ r.height }}
<td>{{ "%.4g"|format(r.mpp_x) if r.mpp_x else "unknown" }}<td>{{ r.reader }} {{ r.reader_version }}
<td>{{ r.reason }}</tr>
{% endfor %}</table>
{% for r in records if r.status == "ok" %}<figure id="{{ r.slide }}"><figcaption><b>{{ r.slide }}</b>: {{ r.split }},
{{ r.patches_positive }} positive and {{ r.patches_negative }} negative patches</figcaption>
<img loading="lazy" src="{{ r.slide|urlencode }}.png" alt="{{ r.slide }}"></figure>
{% endfor %}</html>
""")


def write_index(records: list[SlideRecord], workspace: Workspace) -> None:
    """Write runs/<name>/qa/index.html with every slide, used or not."""
    ordered = sorted(records, key=lambda record: (record.status != "ok", record.split, record.slide))
    write_text(workspace.qa / "index.html", PAGE.render(name=workspace.name, records=ordered))
