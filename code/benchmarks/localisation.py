"""What makes a map that marks the tumour? ADL, the high-frequency channel, the layer, rotations; over several seeds.

    python code/benchmarks/localisation.py [section.key=value ...] --root /tmp/study [--config demo] [--source TOP]
                                           [--variants ...] [--seeds 1 2 3]

Patches come from dataset/<name> of --source, where the stage preprocess was run (the project's top level by default).
Each variant and seed is trained in a folder of its own under --root; then the maps of the test split's positive
patches are measured against their masks, which nothing was trained or chosen by. Beside it stand two measures that
need no mask, to see whether they would choose as the masks do: agreement (mean correlation between the maps of a
patch's four rotations) and evidence (the logit with only the upper half of the map's pixels kept, less that with only
the lower half kept; the other half has the patch's mean colour both times, so that what the colour itself says cancels
out). Run again, it goes on where it stopped; the table shows what is there.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from epsam.cam.activation import ROTATIONS, compute_maps
from epsam.cam.activation_map import resize_map
from epsam.classifier.building import load_classifier
from epsam.classifier.data import PatchImages, as_float, split_batches
from epsam.classifier.resnet import ResNetADL
from epsam.config.loading import find_config, load_config
from epsam.config.schema import Config
from epsam.errors import StateError
from epsam.evaluation.metrics import MapCurve
from epsam.patches.patch import patches_for_classifier, patches_for_sam
from epsam.results import read_results
from epsam.runtime.device import Hardware, choose_hardware
from epsam.runtime.files import read_json, read_mask, write_json
from epsam.runtime.log import progress, set_up_logging
from epsam.runtime.sidecar import flatten
from epsam.stages.train_classifier import train_classifier
from epsam.workspace import SPLITS, Workspace

ADL = {"adl": True, "adl_drop_rate": 0.4}
BOTH = ADL | {"high_frequency": True}
VARIANTS = {
    "RGB": {"adl": False, "high_frequency": False},
    "RGB + ADL": ADL | {"high_frequency": False},
    "RGB + HF": {"adl": False, "high_frequency": True},
    "RGB + ADL + HF": BOTH,
    "both, mixed positives": BOTH | {"positive_share": (0.2, 0.9)},
    "both, ADL as published": BOTH | {"adl_drop_rate": 0.75},
}
LAYERS = ("layer4.0", "layer4")
TURNS = {"1": (0,), "4": ROTATIONS}
RESAMPLES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    set_up_logging()
    config = load_config(find_config(arguments.config), tuple(arguments.overrides))
    hardware = choose_hardware(config.profile)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            settings = config.classifier.model_copy(update=VARIANTS[variant] | {"seed": seed})
            measure(config.model_copy(update={"classifier": settings}), variant, hardware, arguments)
    print_table(arguments.root, config.name)


def measure(config: Config, variant: str, hardware: Hardware, arguments: argparse.Namespace) -> None:
    """Train one classifier and write what its maps are worth to measures.json, unless that is there.

    Raises StateError when what is there was trained with other settings.
    """
    folder = arguments.root / config.name / f"{variant.replace(' ', '')}_{config.classifier.seed}"
    settings = flatten(config.classifier.model_dump(mode="json"))
    if (folder / "settings.json").is_file() and read_json(folder / "settings.json") != settings:
        raise StateError(f"{folder} was trained with other settings (settings.json there); give another --root")
    write_json(folder / "settings.json", settings)
    if (folder / "measures.json").is_file():
        return
    workspace = Workspace(folder, config.name)
    link_patches(Workspace(arguments.source.resolve(), config.name), workspace, config)
    train_classifier(config, workspace, hardware)
    curves, unmasked = map_measures(config, workspace, hardware)
    measures = [
        {
            "layer": layer,
            "turns": turns,
            "pxap": curve.average_precision(RESAMPLES, "study"),
            "dice": curve.best_dice(RESAMPLES, "study"),
            "ones": curve.whole_patch_dice(),
        }
        | unmasked[layer]
        for (layer, turns), curve in curves.items()
    ]
    auc = next(float(row["auc"]) for row in read_results(workspace) if row["split"] == "test")
    write_json(
        folder / "measures.json", {"variant": variant, "seed": config.classifier.seed, "auc": auc, "maps": measures}
    )


def link_patches(source: Workspace, workspace: Workspace, config: Config) -> None:
    """Give `workspace` the patches of `source`, without the classifier's extra ones when the variant has none."""
    mixed_only = config.classifier.positive_share == config.patches.positive_share
    for split in SPLITS:
        patches = patches_for_classifier(source, split)
        if mixed_only:
            patches = patches_for_sam(source, split) + [patch for patch in patches if patch.label == 0]
        for original in [file for patch in patches for file in (patch.path, patch.mask) if file.is_file()]:
            link = workspace.split(split) / original.parent.name / original.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(original)
    if source.patches_csv.is_file() and not workspace.patches_csv.exists():
        workspace.patches_csv.symlink_to(source.patches_csv)


def map_measures(
    config: Config, workspace: Workspace, hardware: Hardware
) -> tuple[dict[tuple[str, str], MapCurve], dict[str, dict[str, float]]]:
    """Curves of the test patches' maps by layer and number of rotations; agreement and evidence by layer."""
    model = load_classifier(config.classifier, workspace.classifier, hardware.device)
    patches = patches_for_sam(workspace, "test")
    images = PatchImages(patches, config.worker_count)
    curves: dict[tuple[str, str], MapCurve] = defaultdict(MapCurve)
    unmasked = {layer: {"agreement": [], "evidence": []} for layer in LAYERS}
    batches = split_batches(len(patches), hardware.cam_batch)
    for indices, batch in progress(images.batches(batches, config.worker_count), total=len(batches), desc="maps"):
        truths = [read_mask(patches[index].mask) for index in indices]
        inputs = as_float(batch, hardware.device)
        for layer in LAYERS:
            with hardware.autocast():
                single = [compute_maps(model, inputs, (degrees,), layer) for degrees in ROTATIONS]
                maps = {"1": single[0], "4": compute_maps(model, inputs, ROTATIONS, layer)}
                unmasked[layer]["evidence"] += evidence(model, inputs, maps["4"])
            unmasked[layer]["agreement"] += agreement(torch.stack(single, 1).cpu().numpy())
            for turns, found in maps.items():
                for cam, truth in zip(found.cpu().numpy(), truths, strict=True):
                    curves[layer, turns].add(resize_map(cam, truth.shape), truth)
    return dict(curves), {
        layer: {name: float(np.mean(values)) for name, values in row.items()} for layer, row in unmasked.items()
    }


def agreement(maps: np.ndarray) -> list[float]:
    """Mean correlation between the maps (N, 4, h, w) of each patch; flat maps agree with nothing."""
    centred = maps.reshape(*maps.shape[:2], -1)
    centred = centred - centred.mean(-1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)
    pairs = np.triu_indices(maps.shape[1], 1)
    return (centred @ centred.transpose(0, 2, 1))[:, pairs[0], pairs[1]].mean(1).tolist()


@torch.inference_mode()
def evidence(model: ResNetADL, images: torch.Tensor, maps: torch.Tensor) -> list[float]:
    """Logit of `images` (N, 3, H, W) with the upper half of the pixels of `maps` (N, h, w) kept, less the lower's."""
    maps = torch.nn.functional.interpolate(maps[:, None], images.shape[-2:], mode="bilinear")
    upper = maps > maps.flatten(1).median(1).values[:, None, None, None]
    colour = images.mean((2, 3), keepdim=True)
    kept, rest = torch.where(upper, images, colour), torch.where(upper, colour, images)
    return (model(kept) - model(rest)).float().cpu().tolist()


def print_table(root: Path, name: str) -> None:
    """One row per variant, layer and number of rotations: mean over seeds, with the lowest and highest."""
    rows = defaultdict(list)
    for path in sorted((root / name).glob("*/measures.json")):
        saved = read_json(path)
        for row in saved["maps"]:
            rows[saved["variant"], row["layer"], row["turns"]].append(row | {"auc": saved["auc"]})
    print("| variant | layer | rotations | seeds | AUC | PxAP | best Dice | all of the patch | agreement | evidence |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        for layer in LAYERS:
            for turns in TURNS:
                found = rows.get((variant, layer, turns))
                if found:
                    print(
                        f"| {variant} | {layer} | {turns} | {len(found)} | {spread([r['auc'] for r in found])} | "
                        f"{spread([r['pxap'][0] for r in found])} | {spread([r['dice'][0] for r in found])} | "
                        f"{found[0]['ones']:.3f} | {spread([r['agreement'] for r in found])} | "
                        f"{spread([r['evidence'] for r in found])} |"
                    )


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
