"""What is known of the public collections: names, published splits, known issues."""

import re
from dataclasses import dataclass


def _camelyon16(split: str, numbers: str) -> dict[str, str]:
    return {f"tumor_{number}": split for number in numbers.split()}


def _camelyon17(split: str, codes: str) -> dict[str, str]:
    """Codes are patient and node written together: 241 is node 1 of patient 24."""
    return {f"patient_{int(code[:-1]):03d}_node_{code[-1]}": split for code in codes.split()}


PUBLISHED_SPLITS: dict[str, dict[str, str]] = {
    "camelyon16": (
        _camelyon16(
            "train",
            "061 018 039 031 035 051 064 040 030 007 025 041 054 065 005 046 023 004 022 008 006 068 "
            "001 009 015 042 016 056 027 057 038 063 019 045 037 062 058 033 010 002 060 055 069 052 "
            "066 011 024",
        )
        | _camelyon16("val", "048 013 067 044 043 036")
        | _camelyon16("test", "032 047 049 028 050 053 034 012 059 014 020 003 026 029 017")
    ),
    "camelyon17": (
        _camelyon17(
            "train",
            "241 512 204 224 444 481 423 603 674 213 161 363 451 151 174 720 202 410 171 640 382 120 "
            "662 681 402 464 731",
        )
        | _camelyon17("val", "343 521 152")
        | _camelyon17("test", "622 391 044 614 104 091 754 463 172")
    ),
}
"""Slide name to split, as published with the method."""


@dataclass(frozen=True)
class Issue:
    """A known fault of one slide."""

    reason: str
    exclude: bool = True
    """False: only its negatives are left out."""


_PARTLY = Issue(
    "holds mirrored sections that are not all annotated: outside the outlines there is tumour", exclude=False
)


KNOWN_ISSUES: dict[str, dict[str, Issue]] = {
    "camelyon16": {
        "normal_086": Issue("holds tumour although it is named normal (later released as tumor_111)"),
        "test_049": Issue("duplicate of another slide of the collection"),
        "test_114": Issue("not exhaustively annotated: outside the outlines there may be tumour", exclude=False),
        "tumor_018": _PARTLY,
        "tumor_046": _PARTLY,
        "tumor_054": _PARTLY,
    },
}


_NAMES = (
    re.compile(r"(?P<kind>tumou?r|normal|test)_0*(?P<number>\d+)", re.IGNORECASE),
    re.compile(r"patient_0*(?P<patient>\d+)_node_0*(?P<node>\d+)", re.IGNORECASE),
)


def canonical_name(slide: str) -> str:
    """The collection's own spelling: `Tumor_1` is tumor_001; other names stay as they are."""
    if match := _NAMES[0].fullmatch(slide):
        kind = match["kind"].lower().replace("tumour", "tumor")
        return f"{kind}_{int(match['number']):03d}"
    if match := _NAMES[1].fullmatch(slide):
        return f"patient_{int(match['patient']):03d}_node_{int(match['node'])}"
    return slide


def patient_of(slide: str) -> str:
    """Patient of a Camelyon17 name; every other slide is a patient of its own."""
    match = _NAMES[1].fullmatch(slide)
    return f"patient_{int(match['patient']):03d}" if match else slide


def split_lists(collection: str, split: str = "published") -> dict[str, list[str]]:
    """Slide names of train, val and test; with `patient-disjoint`, train without the patients of val and test."""
    published = PUBLISHED_SPLITS[collection]
    lists = {name: [slide for slide, found in published.items() if found == name] for name in ("train", "val", "test")}
    if split == "patient-disjoint":
        taken: set[str] = set()
        for name in ("test", "val", "train"):
            lists[name] = [slide for slide in lists[name] if patient_of(slide) not in taken]
            taken |= {patient_of(slide) for slide in lists[name]}
    return lists


def kind_of(slide: str) -> str:
    """`tumour` or `normal` when the name begins so, else an empty string."""
    match = re.match(r"(tumou?r|normal)(?![a-z])", slide, re.IGNORECASE)
    if not match:
        return ""
    return "normal" if match[1].lower() == "normal" else "tumour"
