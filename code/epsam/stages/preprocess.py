"""Stage preprocess: slides and annotations -> patches."""

import filecmp
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

from epsam.config.schema import Config
from epsam.errors import DataError, EpsamError
from epsam.patches.candidates import CandidatesTask, SlideCandidates, find_candidates, load_pictures
from epsam.patches.class_folders import has_class_folders, import_patches
from epsam.patches.extraction import extract
from epsam.patches.manifest import SlideRecord, find_slides, usable
from epsam.patches.patch import lines_of_not_used, read_folder, unused_folders
from epsam.patches.resolution import check_resolutions, warn_of_enlarged
from epsam.patches.selection import Candidates, may_be_positive, select
from epsam.patches.splits import apply_published, assign_random, warn_of_copies, warn_shared_patients
from epsam.patches.tables import remove_stale, write_patches, write_summary
from epsam.report.qa_index import write_index
from epsam.runtime.dask_tasks import run_shared_tasks
from epsam.runtime.failures import OF_THE_ITEM, guard, log_failure
from epsam.runtime.log import logger, progress
from epsam.runtime.text import listed
from epsam.runtime.workers import READER_BYTES, affordable
from epsam.visualization.slide_sheet import write_slide_sheet
from epsam.workspace import SPLITS, Workspace


def preprocess(config: Config, workspace: Workspace) -> None:
    """Cut the patches of all splits: dataset/<name>/{train,val,test}, patches.csv, runs/<name>/slides.csv and qa/.

    Without slides, patches in a folder per class are taken over, and patches that somebody brought into image/ of all
    splits are taken as they are. Slides that cannot be used fail with their reason. Killed and called again, it goes
    on with the slides and patches that are complete.
    Raises DataError when there is neither slide nor patch, when a split would have no positives, or when a file cannot
    be written (a full disk).
    """
    try:
        if not (workspace.slides.is_dir() and any(workspace.slides.iterdir())) and _brought_patches(config, workspace):
            return
        _preprocess(config, workspace)
    except OSError as error:
        raise DataError(
            f"{error.filename or workspace.dataset}: {error.strerror}; what is written stays; free some room "
            "or correct the cause, and run the stage again"
        ) from None


def _brought_patches(config: Config, workspace: Workspace) -> bool:
    """Take patches that somebody brought; gives whether there are any. DataError when a split has none."""
    if has_class_folders(workspace, config.patches.class_folders):
        import_patches(config, workspace)
        _warn_of_patches_in_several_splits(workspace)
        return True
    lacking = [split for split in SPLITS if not (workspace.split(split) / "image").is_dir()]
    if len(lacking) == len(SPLITS):
        if folders := [str(folder.relative_to(workspace.dataset)) for folder in workspace.class_folders()]:
            raise DataError(
                f"{workspace.dataset}: no slides in images/, and of {listed(folders)} none is image/ or a folder per class; "
                "rename them, or name the classes in patches.class_folders"
            )
        return False
    if lacking:
        raise DataError(
            f"{workspace.dataset}: no slides in images/, and no patches in {', '.join(f'{s}/image' for s in lacking)}"
        )
    logger.info(f"{workspace.slides}: no slides; the patches that lie in {', '.join(SPLITS)} are taken as they are")
    for line in unused_folders(workspace):
        logger.warning(line)
    for split in SPLITS:
        for line in lines_of_not_used(read_folder(workspace.split(split))):
            logger.warning(f"{workspace.split(split)}/image: not used: {line}")
    _warn_of_patches_in_several_splits(workspace)
    return True


def _warn_of_patches_in_several_splits(workspace: Workspace) -> None:
    """Warn of patches whose file lies, under the same name, in more than one split."""
    paths: dict[str, list[Path]] = defaultdict(list)
    for split in SPLITS:
        for patch in read_folder(workspace.split(split)).patches:
            paths[patch.path.name].append(patch.path)
    shared = [
        name
        for name, found in paths.items()
        if len(found) > 1 and any(filecmp.cmp(one, other, shallow=False) for one, other in combinations(found, 2))
    ]
    if shared:
        logger.warning(
            f"{workspace.dataset}: {len(shared)} patches lie in several splits, and then figures flatter: {listed(shared)}; "
            "keep each in one"
        )


def _preprocess(config: Config, workspace: Workspace) -> None:
    records = find_slides(workspace, config.slides)
    try:
        apply_published(records, config)
        candidates = find_all_candidates(records, config, workspace)
        labelled = {record.slide for record in records if record.labels}
        check_resolutions({r.slide: r.patch_mpp for r in usable(records)}, config.patches.target_mpp, labelled)
        warn_of_enlarged({r.slide: r.mpp_x for r in usable(records)}, config.patches.target_mpp)
        if config.slides.split == "random":
            assign_random(records, lambda record: _may_be_positive(candidates[record.slide], config), config)
        warn_shared_patients(records)
        warn_of_copies(records)
        purposes = choose(records, candidates, config)
        count_patches(records, candidates, purposes, config)
        remove_stale(records, candidates, purposes, workspace)
        extract(records, candidates, purposes, config, workspace)
        count_patches(records, candidates, purposes, config)
    except EpsamError:
        write_summary(records, workspace)
        raise
    for record in usable(records):
        _write_sheet(record, candidates[record.slide], purposes[record.slide], config, workspace)
    write_index(records, workspace)
    write_patches(records, candidates, purposes, workspace)
    write_summary(records, workspace)


def _may_be_positive(found: SlideCandidates, config: Config) -> bool:
    return may_be_positive(found.fraction, found.label, config)


def _write_sheet(
    record: SlideRecord, found: SlideCandidates, purpose: np.ndarray, config: Config, workspace: Workspace
) -> None:
    """The QA sheet; where it cannot be drawn the slide stays in use, as its patches are right."""
    try:
        with guard(record.path, record.annotation):
            pictures = load_pictures(CandidatesTask(record, config, workspace), found)
            write_slide_sheet(record, found, pictures, purpose, config, workspace.qa)
    except OF_THE_ITEM as error:
        log_failure(f"{record.slide}: its QA sheet", error)


def find_all_candidates(records: list[SlideRecord], config: Config, workspace: Workspace) -> dict[str, SlideCandidates]:
    """Scan the slides in use, by slide name; those that cannot be read fail."""
    by_name = {record.slide: record for record in usable(records)}
    tasks = [CandidatesTask(record, config, workspace) for record in by_name.values()]
    candidates = {}
    with progress(total=len(tasks), desc="slides", unit="slide") as bar:
        workers = affordable(config.worker_count, READER_BYTES)
        for task, result in run_shared_tasks(find_candidates, tasks, workers, workspace.state):
            record = by_name[task.record.slide]
            bar.update()
            if isinstance(result, EpsamError):
                record.drop("failed", str(result))
                log_failure(record.slide, result)
            else:
                candidates[record.slide] = result
                _log_extraction(record, result, result.patch_mpp(config.patches.size_px))
    return candidates


def _log_extraction(record: SlideRecord, found: SlideCandidates, patch_mpp: float | None) -> None:
    record.reader, record.reader_version, record.vendor = found.reader, found.reader_version, found.vendor
    record.width, record.height = found.size
    record.mpp_x, record.mpp_y = found.mpp or (None, None)
    record.patch_mpp = patch_mpp
    resolution = f"{found.mpp[0]:.4g} um/px" if found.mpp else "resolution unknown"
    logger.info(
        f"{record.slide}: {record.width} x {record.height} px, {resolution}, {found.vendor} read by "
        f"{found.reader} {found.reader_version}; {len(found.x)} windows, {int(found.label.sum())} with "
        f"tumour{'; ' + record.reason if record.reason else ''}"
    )
    for note in found.notes:
        logger.warning(f"{record.annotation or record.slide}: {note}")


def choose(records: list[SlideRecord], candidates: dict[str, SlideCandidates], config: Config) -> dict[str, np.ndarray]:
    """What each candidate window of each slide is cut for (see `select`), by slide name."""
    purposes: dict[str, np.ndarray] = {}
    for split in SPLITS:
        slides = sorted((r for r in usable(records) if r.split == split), key=lambda record: record.slide)
        if not slides:
            continue
        lengths = [len(candidates[r.slide].x) for r in slides]
        chosen = select(
            Candidates(
                np.concatenate([candidates[r.slide].fraction for r in slides]),
                np.concatenate([candidates[r.slide].label for r in slides]),
                np.repeat([r.negatives for r in slides], lengths),
                np.repeat([candidates[r.slide].by_hand for r in slides], lengths),
            ),
            split,
            config,
        )
        parts = np.split(chosen, np.cumsum(lengths)[:-1])
        purposes |= {record.slide: part for record, part in zip(slides, parts, strict=True)}
    return purposes


def count_patches(
    records: list[SlideRecord], candidates: dict[str, SlideCandidates], purposes: dict[str, np.ndarray], config: Config
) -> None:
    """Note each slide's patches; raises DataError when a split has no positive for SAM."""
    found = dict.fromkeys(SPLITS, 0)
    for record in usable(records):
        positive, purpose = candidates[record.slide].label == 1, purposes[record.slide]
        record.patches_positive = int(((purpose != "") & positive).sum())
        record.patches_negative = int(((purpose != "") & ~positive).sum())
        found[record.split] += int(((purpose == "all") & positive).sum())
    if empty := [split for split, count in found.items() if not count]:
        low, high = config.patches.positive_share
        raise DataError(
            f"no positive patch for {', '.join(empty)}: no window there has {low:.0%} to {high:.0%} tumour. "
            "runs/<name>/slides.csv says which slides were used and why others were not; correct those, add slides, or "
            "widen patches.positive_share"
        )
