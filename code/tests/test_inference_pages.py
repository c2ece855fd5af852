"""index.html and the pages of slides: what they show and link to, whatever slides are called."""

import json
import re
import shutil
from types import SimpleNamespace
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from markupsafe import escape

from epsam.config.loading import load_config
from epsam.errors import DataError, StateError
from epsam.inference.output import TILES
from epsam.inference.pages import picture
from epsam.inference.pages.index import write_slide_index
from epsam.inference.run import InferenceSettings, infer
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import read_csv, read_image, write_png
from epsam.slides.overview import overview
from epsam.slides.reader import open_slide
from tests.slide_factory import draw, write_slide
from tests.tiny import SETTINGS

HOSTILE = """<img src=x onerror=alert(1)> & "50%" 'a'#b?c:d"""
TUMOUR = ((128, 128, 320, 384), (448, 128, 640, 256))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(folder, *overrides, fresh)` predicts it with a model that takes dark pixels for tumour; gives OUTPUT_DIR."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    models = SimpleNamespace(
        hardware=choose_hardware("cpu"),
        uses_classifier=True,
        usual_overlap=0.5,
        classify=lambda images, names: np.ones(len(images), np.float32),
        segment=lambda images, names: (images[..., 0] < 160).astype(np.float32),
        masks=lambda images, names: images[..., 0] < 160,
    )
    monkeypatch.setattr("epsam.inference.run.load_models", lambda *_, **__: models)
    for name in ("resnet", "decoder"):
        (tmp_path / f"{name}.pth").write_bytes(b"weights")

    def predict(folder, *overrides, fresh=False):
        sizes = ("inference.min_focus_um2=62.5", "patches.size_px=64", "cam.mask_px=64")
        config = load_config(tmp_path / "tiny.yaml", (*sizes, *overrides))
        models.config = config
        paths = (folder, tmp_path / "resnet.pth", None, tmp_path / "decoder.pth", tmp_path / "out")
        infer(InferenceSettings(*paths, config, fresh=fresh), models.hardware)
        return tmp_path / "out"

    return predict


@pytest.fixture
def slides(tmp_path):
    """Two slides, one of a hostile name, and a file that is none."""
    folder = tmp_path / "slides"
    write_slide(folder / f"{HOSTILE}.tif", draw(tumour=TUMOUR))
    write_slide(folder / "normal.tif", draw(), mpp=None)
    (folder / "broken.tif").write_bytes(b"no slide")
    return folder


def links_of(page):
    found = re.findall(r'(?:href|src)="([^"#]+)', page.read_text(encoding="utf-8"))
    return {unquote(link) for link in found if not link.startswith("data:")}


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])


def test_pages_link_to_all_files_and_say_what_failed_whatever_slides_are_called(run, slides, tmp_path):
    with pytest.raises(DataError, match="1 of 3 slides failed"):
        run(slides)
    out = shutil.move(tmp_path / "out", tmp_path / "moved")
    index = out / "index.html"
    text = index.read_text(encoding="utf-8")
    shown = text[text.index("<main") :]
    assert shown.index("broken") < shown.index("normal"), "what failed comes first"
    assert "3 slides: 2 predicted, 1 failed" in text
    assert "normal</b>: its file does not say its resolution" in text
    assert {f"pages/{HOSTILE}.html", f"{HOSTILE}.geojson", f"{HOSTILE}_mask.tif", "slides.csv"} <= links_of(index)
    page = out / "pages" / f"{HOSTILE}.html"
    for html in (index, page, out / "pages" / "normal.html"):
        assert "<img src=x" not in html.read_text(encoding="utf-8")
        assert "http" not in html.read_text(encoding="utf-8").replace("http-equiv", "")
        assert not [link for link in links_of(html) if not (html.parent / link).is_file()]
        assert str(tmp_path) not in html.read_text(encoding="utf-8"), "pages are given to others"
        assert "um/px" not in html.read_text(encoding="utf-8")
    assert f"<dd>{escape(HOSTILE)}.tif</dd>" in page.read_text(encoding="utf-8")
    data = data_of(page)
    assert len(data["foci"]) == 2
    assert data["foci"][0]["text"].startswith("Focus 1: 0.00")
    assert (out / "pages" / (unquote(data["pictures"]) + "_0_0_0.jpg")).is_file()
    assert text.count("#focus-") == 2
    assert "metastasis" not in text, "nothing says that these are lymph nodes"


def test_small_foci_are_dropped_by_their_area_whatever_the_resolution(run, tmp_path):
    picture = draw(tumour=(*TUMOUR[:1], (500, 150, 540, 190)))  # the second of 1,600 px
    for name, mpp in (("40x", 0.25), ("5x", 2.0), ("unknown", None)):
        write_slide(tmp_path / "slides" / f"{name}.tif", picture, mpp=mpp)
    out = run(tmp_path / "slides", "inference.min_focus_um2=625")
    foci = {row["slide"]: int(row["foci"]) for row in read_csv(out / "slides.csv", ["slide", "foci"])}
    assert foci == {"40x": 1, "5x": 2, "unknown": 1}


def test_outlines_on_the_page_lie_on_the_tumour(run, slides):
    (slides / "broken.tif").unlink()
    out = run(slides)
    data = data_of(out / "pages" / f"{HOSTILE}.html")
    painted = np.zeros((640, 768), np.uint8)
    for focus in data["foci"]:
        cv2.fillPoly(painted, [np.array(ring).reshape(-1, 2) for ring in focus["rings"]], 1)
    true = np.zeros_like(painted)
    for x0, y0, x1, y1 in TUMOUR:
        true[y0:y1, x0:x1] = 1
    assert (painted & true).sum() / (painted | true).sum() > 0.95
    left, top, *_ = cv2.boundingRect(cv2.findNonZero(painted))
    assert data["foci"][0]["box"][:2] == pytest.approx((left, top), abs=2)
    tissue = np.concatenate([np.array(ring).reshape(-1, 2) for ring in data["tissue"]])
    assert tissue.min(0) == pytest.approx((64, 64), abs=24)
    assert tissue.max(0) == pytest.approx((704, 576), abs=24)
    probability = cv2.imread(str(out / "pages" / f"{HOSTILE}_probability.png"), cv2.IMREAD_UNCHANGED)
    assert probability.shape == (640, 768, 4)
    assert probability[256, 200, 3] > 100, "opaque on the tumour"
    assert probability[500, 500, 3] == 0, "clear elsewhere"


def test_pages_that_were_deleted_are_made_again_and_fresh_deletes_them_all(run, slides):
    (slides / "broken.tif").unlink()
    out = run(slides)
    before = {path.name: path.read_bytes() for path in (out / "pages").iterdir()}
    for name in (f"{HOSTILE}.html", f"{HOSTILE}_0_0_0.jpg"):
        (out / "pages" / name).unlink()
        (out / "index.html").unlink()
        run(slides)
        assert {path.name: path.read_bytes() for path in (out / "pages").iterdir()} == before
        assert "#focus-2" in (out / "index.html").read_text()
    (out / "pages" / "mine.txt").write_text("mine")
    (slides / f"{HOSTILE}.tif").unlink()
    run(slides, fresh=True)
    names = {path.name for path in (out / "pages").iterdir()}
    assert names == {name for name in before if name.startswith("normal")} | {"mine.txt"}
    (out / "pages" / "normal.html").write_text("my notes")
    with pytest.raises(StateError, match=r"normal\.html was changed since"):
        run(slides, fresh=True)


@pytest.mark.parametrize("foreign", ["index.html", "pages/normal.html", "pages/normal_2_3_3.jpg"])
def test_pages_of_others_are_kept(run, slides, tmp_path, foreign):
    (tmp_path / "out" / foreign).parent.mkdir(parents=True)
    (tmp_path / "out" / foreign).write_text("mine")
    with pytest.raises(StateError, match=r"was not made by \./infer\.sh"):
        run(slides)
    assert (tmp_path / "out" / foreign).read_text() == "mine"


@pytest.mark.parametrize("size", [(600, 500), (250, 1000), (1030, 700), (64, 64)])
def test_the_tiles_of_a_picture_are_the_slide_at_each_level(tmp_path, monkeypatch, size):
    monkeypatch.setattr(picture, "TILE_PX", 64)
    monkeypatch.setattr(picture, "LONGEST_PX", 256)
    slide = open_slide(write_slide(tmp_path / "a.tif", draw(size, tissue=(10, 10, size[0] - 30, size[1] - 10))))
    made = picture.write_picture(tmp_path / "pages", "a", slide)
    assert {path.name.removeprefix("a") for path in (tmp_path / "pages").iterdir()} <= set(TILES)
    assert max(made.levels[-1][:2]) in range(min(max(size), 128), 257)
    for level, (width, height, step) in enumerate(made.levels):
        stitched = np.zeros((height, width, 3), np.uint8)
        for path in (tmp_path / "pages").glob(f"a_{level}_*"):
            row, column = map(int, path.stem.split("_")[2:])
            tile = read_image(path)
            stitched[row * 64 : row * 64 + tile.shape[0], column * 64 : column * 64 + tile.shape[1]] = tile
        whole = overview(slide, step)[:height, :width].astype(int)
        assert np.abs(stitched[: whole.shape[0], : whole.shape[1]] - whole).mean() < 8
    assert max(made.coarsest.shape) <= 64


def row_of(slide, **changes):
    figures = {"mpp_x": 0.5, "mpp_y": 0.5, "tumour_fraction": 0.1, "foci": 3, "tumour_px2": 10.0}
    return {"slide": slide, "status": "ok", "reason": "", "largest_focus_px": 9000.0} | figures | changes


def test_foci_of_lymph_nodes_have_classes_of_size_and_a_damaged_record_costs_its_own_alone(tmp_path, caplog):
    (tmp_path / "pages").mkdir()
    focus = {"area_px2": 10.0, "x": 1, "y": 2, "probability": 0.9}
    foci = [focus | {"longest_px": px} for px in (400.0, 401.0, 4000.0, 4002.0)]
    (tmp_path / "pages" / "a.json").write_text(json.dumps({"warnings": ["<b>warned"], "foci": foci}))
    (tmp_path / "pages" / "b.json").write_text(json.dumps({"warnings": [], "foci": [focus]}))
    write_slide_index(tmp_path, [row_of("a"), row_of("b")], lymph_nodes=True)
    text = (tmp_path / "index.html").read_text()
    table = text[text.index("Figures of each focus") :]
    classes = re.findall(r">(isolated tumour cells|micrometastasis|macrometastasis)<", table)
    assert classes == ["macrometastasis", "micrometastasis", "micrometastasis", "isolated tumour cells"]
    assert "no stage of a\npatient" in text
    assert "&lt;b&gt;warned" in text
    assert "b.json: is not the record" in caplog.text
    write_slide_index(tmp_path, [row_of("a", mpp_x="", mpp_y="")], lymph_nodes=True)
    assert ">macrometastasis<" not in (tmp_path / "index.html").read_text(), "no class without a resolution"


def test_a_patch_folder_has_a_page_with_what_failed_first(run, tmp_path):
    patches = tmp_path / "patches"
    write_png(patches / "image" / "dark.png", np.full((64, 64, 3), 90, np.uint8))
    write_png(patches / "image" / "<i>pale.png", np.full((64, 64, 3), 230, np.uint8))
    (patches / "image" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="1 of 3 patches failed"):
        run(patches)
    index = tmp_path / "out" / "index.html"
    text = index.read_text(encoding="utf-8")
    shown = text[text.index("<main") :]
    assert shown.index("bad") < shown.index("pale")
    assert "<i>" not in text
    assert {"mask/dark.png", "overlay/<i>pale.png"} <= links_of(index)
    assert not [link for link in links_of(index) if not (index.parent / link).is_file()]
