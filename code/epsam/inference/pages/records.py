"""pages/<slide>.json: what index.html says of a slide beside its row of slides.csv."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from epsam.runtime.records import Record

SIZE_CLASSES = ((0.2, "isolated tumour cells"), (2.0, "micrometastasis"), (float("inf"), "macrometastasis"))
"""Greatest longest side in mm of the classes of size of metastases in lymph nodes: AJCC Cancer Staging Manual, 8th
edition, chapter 48 (breast), which Camelyon17 uses as well."""


class FocusRecord(Record):
    """A focus, in the order of the outlines in GeoJSON."""

    area_px2: NonNegativeFloat
    """Level-0 px2, as `longest_px` and the position are level-0 px."""
    longest_px: NonNegativeFloat
    x: int
    y: int
    """A place inside it."""
    probability: Annotated[float, Field(ge=0, le=1)]
    """Mean of the map inside."""


class PageRecord(Record):
    """pages/<slide>.json."""

    warnings: list[str]
    foci: list[FocusRecord]


def size_class(longest_mm: float) -> str:
    """The class of a focus in a lymph node by its longest side in mm."""
    return next(name for most, name in SIZE_CLASSES if longest_mm <= most)


def area_text(px2: float, mpp: tuple[float, float] | None) -> str:
    """An area given in level-0 px2, in mm2 where the resolution is known."""
    if mpp is None:
        return f"{px2:,.0f} px²"
    mm2 = px2 * mpp[0] * mpp[1] * 1e-6
    return f"{mm2:,.1f} mm²" if mm2 >= 100 else f"{mm2:.2f} mm²" if mm2 >= 1 else f"{mm2:.4f} mm²"


def side_text(px: float, mpp: tuple[float, float] | None) -> str:
    """A length given in level-0 px, in mm where the resolution is known."""
    return f"{px:,.0f} px" if mpp is None else f"{px * sum(mpp) / 2e3:.2f} mm"
