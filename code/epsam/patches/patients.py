"""Whose slides these are, as far as their names say."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from epsam.workspace import SPLITS

TCGA = re.compile(r"TCGA-\w{2}-\w{4}", re.IGNORECASE)
PART = re.compile(r"(.*\d.*?)[ _.-]+[A-Za-z]{0,3}\d{0,2}$")
"""A name with a number, then a short part: `case12_A`, `P-0031-2`."""


class HasPatient(Protocol):
    """What is asked of a slide's record."""

    slide: str
    split: str
    status: str

    @property
    def patient(self) -> str: ...

    @property
    def name(self) -> str: ...


def patient_by_pattern(slide: str, pattern: str | None) -> str:
    """What `pattern` (slides.patient_pattern) finds in a slide's name: its first group, or all of the match."""
    match = re.search(pattern, slide) if pattern else None
    return (match[1] if match.re.groups else match[0]) or "" if match else ""


def guessed_patient(slide: str) -> str:
    """The part of a name that often names the patient; empty where nothing suggests one."""
    if match := TCGA.match(slide):
        return match[0].upper()
    match = PART.fullmatch(slide)
    return match[1] if match else ""


def patients_in_several_splits(records: Sequence[HasPatient]) -> dict[str, set[str]]:
    """Patients that names suggest and whose slides lie in several splits; slides of known patients do not count."""
    splits: dict[str, set[str]] = defaultdict(set)
    counts: dict[str, int] = defaultdict(int)
    unknown = [record for record in records if record.status == "ok" and record.patient == record.name]
    for record in unknown:
        if guess := guessed_patient(record.slide):
            splits[guess].add(record.split)
            counts[guess] += 1
    most = max(4, len(unknown) // 2)  # a number that most names share is a year or a study
    return {guess: found for guess, found in sorted(splits.items()) if len(found) > 1 and counts[guess] <= most}


def in_words(splits: set[str]) -> str:
    """Names of splits in their order."""
    return " and ".join(split for split in SPLITS if split in splits)
