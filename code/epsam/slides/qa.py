"""QA sheets: one picture per slide and a page of them all, to look at before the GPU is started."""

from pathlib import Path

import cv2
import jinja2
import numpy as np

from epsam.config import Config
from epsam.runtime.files import write_png, write_text
from epsam.slides.annotation import read_annotation
from epsam.slides.found import SlideRecord
from epsam.slides.scan import Scan
from epsam.workspace import Workspace

TISSUE, TUMOUR, HOLE = (0, 150, 60), (220, 0, 0), (255, 140, 0)
POSITIVE, EXTRA, NEGATIVE = (0, 60, 255), (150, 0, 200), (90, 90, 90)
LEGEND = (("tissue", TISSUE), ("tumour outline", TUMOUR), ("hole", HOLE), ("positive", POSITIVE),
          ("positive, classifier only", EXTRA), ("negative", NEGATIVE))
STRIP_PX = 28
LEAST_WIDTH = 900


def write_sheet(record: SlideRecord, scan: Scan, purpose: np.ndarray, config: Config, folder: Path) -> None:
    """Write `folder`/<slide>.png: thumbnail, tissue outline, annotation and chosen windows."""
    picture = scan.thumbnail.copy()
    scale = picture.shape[1] / scan.size[0]
    outlines, _ = cv2.findContours(scan.tissue.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, outlines, -1, TISSUE, 1)
    for i in np.flatnonzero(purpose != ""):
        colour = EXTRA if purpose[i] == "classifier" else POSITIVE if scan.fraction[i] > 0 else NEGATIVE
        left, top = round(scan.x[i] * scale), round(scan.y[i] * scale)
        side = max(2, round(scan.read_px * scale))
        cv2.rectangle(picture, (left, top), (left + side - 1, top + side - 1), colour, 1)
    if record.annotation:
        for polygon in read_annotation(record.annotation, config.slides.groups).polygons:
            points = np.rint(polygon.points * scale).astype(np.int32)
            cv2.polylines(picture, [points], True, TUMOUR if polygon.kind == "tumour" else HOLE, 1, cv2.LINE_AA)
    write_png(folder / f"{record.slide}.png", _with_legend(picture))


def _with_legend(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    sheet = np.full((height + STRIP_PX, max(width, LEAST_WIDTH), 3), 255, np.uint8)
    sheet[:height, :width] = picture
    x = 8
    for text, colour in LEGEND:
        cv2.rectangle(sheet, (x, height + 8), (x + 12, height + 20), colour, -1)
        cv2.putText(sheet, text, (x + 17, height + 19), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        x += 17 + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0] + 18
    return sheet


PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Slides of {{ name }}</title>
<style>body{font:15px/1.4 system-ui,sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.2em .8em;
text-align:left;border-bottom:1px solid #ccc}figure{margin:2em 0}img{max-width:100%;border:1px solid #ccc}
.aside{color:#b00}</style>
<h1>Slides of {{ name }}</h1>
<p>Look at the outlines: that of the tissue should hold all tissue and no pen or glass, that of the tumour should lie on
the tumour.</p>
<table><tr><th>slide<th>split<th>status<th>positive<th>negative<th>size<th>um/px<th>reader<th>note</tr>
{% for r in records %}<tr{% if r.status == "set aside" %} class="aside"{% endif %}><td>
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
