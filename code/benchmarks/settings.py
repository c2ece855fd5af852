"""Which settings move the result: the SAM stages again, one setting changed at a time, on finished runs.

    python code/benchmarks/settings.py [TOP ...] [--name demo] [--only boxes ids_0.8]

Every TOP is a top level whose run `name` has gone at least through the stage embed (benchmarks/seeds.py makes several,
one per seed); the default is this project's own. Maps and embeddings are used as they are. What is trained lies
under TOP/runs/<name>/settings/<variant>/; run again, it goes on where it stopped. The table gives the mean Dice of
test patches over the tops for each round, and the change of the last round against the settings as they are.
"""

import argparse
from pathlib import Path

import numpy as np

from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams
from epsam.config.loading import load_config
from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation.metrics import overlap, pooled_dice
from epsam.patches.patch import patches_for_sam
from epsam.runtime.device import Hardware, choose_hardware
from epsam.runtime.files import read_csv, read_mask, write_csv
from epsam.runtime.log import logger, set_up_logging
from epsam.sam.session import SamSession
from epsam.segmenter import segment_stored
from epsam.stages.finetune import finetune
from epsam.stages.retrain import retrain
from epsam.workspace import SPLITS, Workspace

VARIANTS = {
    "as_it_is": (),
    "boxes": ("prompts.kind=boxes",),
    "both": ("prompts.kind=both",),
    "points_10": ("prompts.points=10",),
    "points_50": ("prompts.points=50",),
    "ids_0.8": ("retrain.ids=0.8",),
    "ids_0.9": ("retrain.ids=0.9",),
    "all_kept": ("retrain.ids=0",),
    "all_islands": ("postprocess.components=all",),
    "small_regions": ("postprocess.min_region_px=0",),
    "as_decoded": ("postprocess.components=all", "postprocess.min_region_px=0"),
    "lr_a_third": ("finetune.lr=1.0e-4",),
    "embeddings_off": ("sam.embeddings=off", "retrain.rounds=0"),
    "prompts_from_mask": ("finetune.prompts_from=mask",),
    "prompts_from_cam": ("finetune.prompts_from=cam",),
    "select_on_val_masks": ("finetune.select_on=val_masks",),
}


def main() -> None:
    project = Path(__file__).parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tops", nargs="*", type=Path, default=[project], metavar="TOP")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    set_up_logging()
    hardware = choose_hardware()
    table = {
        variant: [run_variant(Workspace(top, arguments.name), variant, hardware) for top in arguments.tops]
        for variant in arguments.only
    }
    print_table(table)


def run_variant(source: Workspace, variant: str, hardware: Hardware) -> dict[str, float]:
    """Mean Dice of test patches by method (cam, sam, round0, ...) for one variant of one run."""
    config = load_config(source.run / "config.yaml", VARIANTS[variant])
    workspace = borrow(source, source.run / "settings" / variant)
    done = workspace.run / "dice.csv"
    if not done.is_file():
        logger.info(f"--- {variant} of {source.root}")
        if not workspace.decoder(0).is_file():
            finetune(config, workspace, hardware)
        try:
            retrain(config, workspace, hardware)
        except DataError as error:  # a round that keeps nothing is a result too
            logger.warning(str(error))
        decoders = {"sam": None} | {
            f"round{n}": workspace.decoder(n)
            for n in range(config.retrain.rounds + 1)
            if workspace.decoder(n).is_file()
        }
        rows = [{"method": "cam", "dice": cam_dice(config, workspace)}]
        session = SamSession(config, workspace, hardware)
        for method, path in decoders.items():
            session.use_decoder(path)
            found = segment_stored(session, "test", session.examples("test"))
            predicted = ((sample.example.patch.name, mask) for sample, mask in found)
            rows.append({"method": method, "dice": mean_dice(workspace, predicted)})
        write_csv(done, rows, ["method", "dice"])
    return {row["method"]: float(row["dice"]) for row in read_csv(done, ["method", "dice"])}


def borrow(source: Workspace, top: Path) -> Workspace:
    """A workspace under `top` that shares patches, masks, maps, embeddings and SAM's weights with `source`."""
    workspace = Workspace(top, source.name)
    shared = [workspace.split(split) / kind for split in SPLITS for kind in ("image", "mask")]
    shared += [workspace.pseudo_labels(0), workspace.patches_csv, workspace.run / "cams", workspace.run / "embeddings"]
    shared += [workspace.checkpoints / path.name for path in source.checkpoints.glob("sam_*.pth")]
    for link in shared:
        original = source.root / link.relative_to(workspace.root)
        link.parent.mkdir(parents=True, exist_ok=True)
        if original.exists() and not link.exists():
            link.symlink_to(original.resolve())
    return workspace


def cam_dice(config: Config, workspace: Workspace) -> float:
    """Mean Dice of the CAM masks of test patches."""
    cams = load_cams(workspace.cams("test"))
    return mean_dice(
        workspace,
        (
            (patch.name, cam_mask(cams[patch.name], config.cam, read_mask(patch.mask).shape))
            for patch in patches_for_sam(workspace, "test")
        ),
    )


def mean_dice(workspace: Workspace, predicted) -> float:
    """Mean over test patches of the Dice of (name, mask) pairs with the true masks."""
    true = {patch.name: read_mask(patch.mask) for patch in patches_for_sam(workspace, "test")}
    return float(np.mean(pooled_dice(np.array([overlap(mask, true[name]) for name, mask in predicted]))))


def print_table(table: dict[str, list[dict[str, float]]]) -> None:
    """One line per variant, means over the runs."""
    methods = max((runs[0] for runs in table.values()), key=len)
    base = table.get("as_it_is")
    print(f"| variant | {' | '.join(methods)} | last round against as_it_is |\n|{'---|' * (len(methods) + 2)}")
    for variant, runs in table.items():
        cells = [
            f"{np.mean([run[method] for run in runs]):.3f}" if all(method in run for run in runs) else "-"
            for method in methods
        ]
        last = [list(run.values())[-1] for run in runs]
        change = f"{np.mean(last) - np.mean([list(run.values())[-1] for run in base]):+.3f}" if base else "-"
        print(f"| {variant} | {' | '.join(cells)} | {change} |")


if __name__ == "__main__":
    main()
