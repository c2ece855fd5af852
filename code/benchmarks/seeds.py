"""The table of methods over several seeds, on one set of patches: mean and standard deviation.

    python code/benchmarks/seeds.py [section.key=value ...] --root /tmp/seeds [--config demo] [--source TOP] [--seeds 1 2 3]

Every seed, of classifier, decoder and student alike, has a folder of its own under --root with a copy of the patches; the
classifier and all that follows are trained in it. Patches come from dataset/<name> of --source, where the stage preprocess
was run; without --source the demo slides are drawn and cut under --root first. Run again, it goes on where it stopped.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from epsam.config.loading import find_config, load_config
from epsam.config.schema import Config
from epsam.demo.slides import make_demo
from epsam.evaluation.methods import final_method, methods_of, upper_bound
from epsam.pipeline import STAGES
from epsam.report.result_section import method_rows, share_closed
from epsam.results import read_results
from epsam.runs.runner import run_stage
from epsam.runtime.log import set_up_logging
from epsam.workspace import SPLITS, Workspace

SHIPPED_SAM = Path(__file__).parents[2] / "checkpoints" / "sam_demo.pth"
COLUMNS = {
    "Dice": "dice",
    "IoU": "iou",
    "pooled Dice": "pooled_dice",
    "pooled Dice, all": "all_pooled_dice",
    "precision, all": "all_precision",
    "recall, all": "all_recall",
}


def main() -> None:
    arguments = _arguments()
    set_up_logging()
    config = load_config(find_config(arguments.config), tuple(arguments.overrides))
    source = Workspace(arguments.source or arguments.root / "data", config.name)
    if arguments.source is None:
        make_demo(source.dataset)
        run_stage(STAGES, STAGES[0], config, source)
    runs = {seed: _run(config, source, arguments.root / f"seed_{seed}", seed) for seed in arguments.seeds}
    _print_table(config, runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--config", default="demo", help="YAML file, or the name of a shipped one")
    parser.add_argument("--source", type=Path, help="top level that holds dataset/<name>/ with its patches cut")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args()


def _run(config: Config, source: Workspace, top: Path, seed: int) -> Workspace:
    sections = ("classifier", "finetune", "student")
    seeded = config.model_copy(
        update={name: getattr(config, name).model_copy(update={"seed": seed}) for name in sections}
    )
    workspace = Workspace(top, config.name)
    _bring_patches(source, workspace)
    set_up_logging(workspace.log)
    for stage in STAGES:
        run_stage(STAGES, stage, seeded, workspace)
    return workspace


def _bring_patches(source: Workspace, workspace: Workspace) -> None:
    """Copy patches, their tables and the note that they are cut; slides are linked, not copied."""
    done = workspace.state / "preprocess.json"
    if done.is_file():
        return
    workspace.dataset.mkdir(parents=True, exist_ok=True)
    for folder in ("images", "annotations"):
        link, slides = workspace.dataset / folder, source.dataset / folder
        if slides.is_dir() and not link.exists():
            link.symlink_to(slides.resolve(), target_is_directory=True)
    for split in SPLITS:
        for kind in ("image", "mask"):
            shutil.copytree(source.split(split) / kind, workspace.split(split) / kind, dirs_exist_ok=True)
    tables = ("patches_csv", "slides_csv", "slide_table", "labels_csv")
    for table, copy in ((getattr(source, name), getattr(workspace, name)) for name in tables):
        if table.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(table, copy)
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    shutil.copy(SHIPPED_SAM, workspace.checkpoints)
    workspace.state.mkdir(parents=True, exist_ok=True)
    shutil.copy(source.state / "preprocess.json", done)


def _print_table(config: Config, runs: dict[int, Workspace]) -> None:
    tables = {seed: method_rows(workspace) for seed, workspace in runs.items()}
    first = next(iter(tables.values()))
    print(
        f"\n{config.name}: {first['cam']['patches']} test patches with tumour of {first['cam']['all_patches']}; "
        f"mean and standard deviation over seeds {', '.join(map(str, runs))}\n"
    )
    print(f"| method | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for method in methods_of(config, next(iter(runs.values()))):
        cells = [_spread([float(rows[method.name][key]) for rows in tables.values()]) for key in COLUMNS.values()]
        print(f"| {method.title} | {' | '.join(cells)} |")
    print(f"\nPxAP of the CAM: {_spread([float(rows['cam']['pxap']) for rows in tables.values()])}")
    print(f"AUC of the classifier on test patches: {_spread([_auc(workspace) for workspace in runs.values()])}")
    finals, bound = {seed: final_method(config, run) for seed, run in runs.items()}, upper_bound(config)
    closed = {seed: share_closed(rows, finals[seed], bound) for seed, rows in tables.items()}
    known = [share for share in closed.values() if share is not None]
    if known:
        each = ", ".join(
            f"seed {seed}: " + ("no gap" if share is None else f"{share:.2f}") for seed, share in closed.items()
        )
        print(
            f"share of the gap in Dice from cam to {bound} that {', '.join(sorted(set(finals.values())))} closes: "
            f"{_share_of_means(tables, finals, bound):.2f} of the mean gap; by seed {_spread(known)} ({each})"
        )


def _share_of_means(tables: dict[int, dict[str, dict[str, str]]], finals: dict[int, str], bound: str) -> float:
    """The share of the mean gap, which swings less than that of one seed whose CAM leaves little to gain."""
    cam, last, supervised = (
        np.mean([float(rows[method(seed)]["dice"]) for seed, rows in tables.items()])
        for method in (lambda _: "cam", finals.__getitem__, lambda _: bound)
    )
    return float((last - cam) / (supervised - cam))


def _spread(values: list[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def _auc(workspace: Workspace) -> float:
    return next(
        float(row["auc"])
        for row in read_results(workspace)
        if row["stage"] == "train-classifier" and row["split"] == "test"
    )


if __name__ == "__main__":
    main()
