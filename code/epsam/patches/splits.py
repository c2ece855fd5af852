"""Which slide belongs to train, val or test."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from epsam.config.schema import Config
from epsam.errors import ConfigError, DataError, SlideError
from epsam.patches.camelyon import PUBLISHED_SPLITS
from epsam.patches.manifest import SlideRecord, usable
from epsam.patches.patients import in_words, patients_in_several_splits
from epsam.runtime.log import logger
from epsam.runtime.seeds import seed_of
from epsam.runtime.text import listed
from epsam.slides.formats import content_hash, slide_bytes
from epsam.workspace import SPLITS


def apply_published(records: Iterable[SlideRecord], config: Config) -> None:
    """Give each slide its published split; slides outside it are excluded. Random splits come later.

    With `patient-disjoint`, val and test stay as published, and train loses the slides of their patients. Slides of
    the list that are not here are counted and named. Raises DataError when a split would get no slide at all.
    """
    settings = config.slides
    records = list(records)
    for record in records:
        record.split = record.given_split
    if settings.split == "random":
        return
    if settings.collection not in PUBLISHED_SPLITS:
        raise ConfigError(
            f"slides.split: {settings.split} needs slides.collection: camelyon16 or camelyon17; use "
            "split: random, which keeps patients together where slides.csv names them"
        )
    published = PUBLISHED_SPLITS[settings.collection]
    for record in records:
        record.split = record.split or published.get(record.name, "")
        if not record.split:
            record.drop("excluded", f"not in the published split of {settings.collection}")
    _warn_missing(records, published, settings.collection)
    _treat_shared_patients(records, disjoint=settings.split == "patient-disjoint")


def _warn_missing(records: Iterable[SlideRecord], published: Mapping[str, str], collection: str) -> None:
    """Warn of slides that a published list names and that are not here; DataError when a split is left with none."""
    here = {record.name for record in records if record.is_slide}
    lines = []
    for split in SPLITS:
        wanted = sorted(name for name, of in published.items() if of == split)
        if missing := [name for name in wanted if name not in here]:
            lines.append(f"{split} {len(missing)} of {len(wanted)} ({listed(missing, 10)})")
    if lines:
        logger.warning(f"slides of the published split of {collection} that are not here: {'; '.join(lines)}")
    found = {record.split for record in records if record.is_slide}
    if empty := [split for split in SPLITS if split not in found]:
        raise DataError(
            f"none of the slides that the published split of {collection} names for {', '.join(empty)} is "
            f"here: {'; '.join(lines)}. Download them, name a split in slides.csv, or use "
            "slides.split=random"
        )


def _treat_shared_patients(records: list[SlideRecord], disjoint: bool) -> None:
    splits = defaultdict(set)
    for record in records:
        if record.status == "ok":
            splits[record.patient_key].add(record.split)
    shared = {patient: found for patient, found in sorted(splits.items()) if len(found) > 1}
    for patient, found in shared.items():
        where = " and ".join(split for split in SPLITS if split in found)
        if not disjoint:
            logger.warning(
                f"{patient} has slides in {where} in the published split, so its figures flatter; "
                "slides.split=patient-disjoint avoids this"
            )
            continue
        keep = next(split for split in reversed(SPLITS) if split in found)
        for record in records:
            if record.patient_key == patient and record.split != keep:
                record.drop("excluded", f"{patient} is in {keep} too (split: patient-disjoint)")


def assign_random(
    records: Sequence[SlideRecord], may_be_positive: Callable[[SlideRecord], bool], config: Config
) -> None:
    """Assign patients, with all their slides, to splits by `split_shares`: those with positives, then the others.

    may_be_positive: whether a slide has positive windows that may be chosen. The assignment depends on names and seed alone.
    Raises DataError when there are fewer patients with positives than splits.
    """
    free = [record for record in records if record.status == "ok" and not record.split]
    fixed = {record.patient_key: record.split for record in records if record.status == "ok" and record.split}
    patients = defaultdict(list)
    for record in free:
        if record.patient_key in fixed:
            record.split = fixed[record.patient_key]
        else:
            patients[record.patient_key].append(record)
    positive = [p for p, slides in patients.items() if any(may_be_positive(record) for record in slides)]
    served = {record.split for record in records if record.status == "ok" and record.split and may_be_positive(record)}
    wanting = [split for split in SPLITS if split not in served]
    if len(positive) < len(wanting):
        raise DataError(
            f"{len(positive)} slides or patients have windows with a tumour share that may be chosen, but the splits "
            f"{', '.join(wanting)} need one each; add annotated slides, widen patches.positive_share, or see why slides "
            "failed or are excluded in slides.csv"
        )
    for stratum in (positive, [p for p in patients if p not in set(positive)]):
        order = sorted(stratum, key=lambda patient: seed_of(config.patches.seed, "split", patient))
        least = {split: int(stratum is positive and split in wanting) for split in SPLITS}
        counts = _apportion(len(order), config.slides.split_shares, [least[split] for split in SPLITS])
        names = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
        for patient, split in zip(order, names, strict=True):
            for record in patients[patient]:
                record.split = split


def warn_shared_patients(records: Sequence[SlideRecord]) -> None:
    """Warn where names suggest that slides of one patient lie in several splits."""
    shared = patients_in_several_splits(records)
    if shared:
        shown = listed(f"{patient} ({in_words(splits)})" for patient, splits in shared.items())
        logger.warning(
            f"names suggest that {len(shared)} patients have slides in several splits, and then figures flatter: "
            f"{shown}. Name the patients in the column patient of slides.csv, or by slides.patient_pattern"
        )


def warn_of_copies(records: Sequence[SlideRecord]) -> None:
    """Warn of slides that are copies of one another under other names: read are parts of those that are of one size."""
    of_size: dict[int, list[SlideRecord]] = defaultdict(list)
    for record in usable(records):
        of_size[slide_bytes(record.path)].append(record)
    copies: dict[str, list[SlideRecord]] = defaultdict(list)
    for record in (record for same in of_size.values() if len(same) > 1 for record in same):
        with suppress(SlideError):  # gone since it was opened: what is to be cut from it says so
            copies[content_hash(record.path)].append(record)
    for same in (same for same in copies.values() if len(same) > 1):
        splits = {record.split for record in same}
        harm = (
            f"they lie in {in_words(splits)}, and figures flatter" if len(splits) > 1 else "it counts more than others"
        )
        logger.warning(
            f"{listed(record.slide for record in same)} are copies of one slide: {harm}; keep one of them, or say so in the "
            "column exclude of slides.csv"
        )


def _apportion(total: int, shares: Sequence[float], least: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, near total * shares (largest remainder), none below `least`."""
    counts = [max(int(total * share), low) for share, low in zip(shares, least, strict=True)]
    while sum(counts) < total:
        counts[max(range(3), key=lambda i: total * shares[i] - counts[i])] += 1
    while sum(counts) > total:
        able = [i for i in range(3) if counts[i] > least[i]]
        counts[min(able, key=lambda i: total * shares[i] - counts[i])] -= 1
    return counts
