"""A folder of patches to predict: which files are patches, and which true masks belong to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from epsam.errors import DataError
from epsam.inference.names import output_names
from epsam.patches.patch import numberings
from epsam.runtime.failures import OF_THE_ITEM, guard
from epsam.runtime.image_formats import image_size
from epsam.runtime.log import logger
from epsam.runtime.text import listed

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Of patches and masks, in small letters."""


@dataclass(frozen=True)
class Patch:
    """A patch to predict."""

    name: str
    """Of its outputs."""
    image: Path
    mask: Path | None
    """Its true mask, where there is one."""
    known_positive: bool = False
    """Labelled by its name (`_1`) and measured: SAM sees it whatever the classifier says, as in the evaluation."""


def find_patches(folder: Path) -> list[Patch]:
    """The pictures in `folder`/image with the masks of the same names in `folder`/mask; other files are warned of.

    Raises DataError when there is no patch, when two masks have the name of one patch, or when there are masks but
    none has the name of a patch.
    """
    images = _pictures(folder / "image", "patches")
    if not images:
        raise DataError(
            f"{folder / 'image'}: no picture in it ({', '.join(SUFFIXES)}); patches lie there, masks in mask/"
        )
    masks = _pictures(folder / "mask", "masks") if (folder / "mask").is_dir() else []
    others = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower().startswith("mask")]
    if others and others != ["mask"]:
        logger.warning(
            f"{folder}: true masks lie in mask/; not used: {listed(name for name in others if name != 'mask')}"
        )
    by_name = output_names(images, folder / "image")
    numbered = numberings(images)
    positives = {image for image in images if image.stem.endswith("_1") and image.stem[:-2] not in numbered}
    own_masks = {image: _mask_of(image, masks) for image in images}
    patches = [
        Patch(name, image, own_masks[image], own_masks[image] is not None and image in positives)
        for name, image in by_name.items()
    ]
    found = {patch.mask for patch in patches} - {None}
    if masks and not found:
        raise DataError(
            f"{folder / 'mask'}: none of its {len(masks)} masks has the name of a patch (e.g. mask "
            f"{masks[0].name}, patch {images[0].name}); give them the same names, or take mask/ away"
        )
    if left := [mask.name for mask in masks if mask not in found]:
        logger.warning(f"{folder / 'mask'}: {len(left)} masks have no patch of their name: {listed(left)}")
    without = [patch.name for patch in patches if found and patch.mask is None and patch.image in positives]
    if without:
        logger.warning(
            f"{folder / 'mask'}: {len(without)} patches named _1 have no mask ({listed(without)}); they are "
            "predicted and left out of the figures"
        )
    return patches


def _pictures(folder: Path, what: str) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if passed_over := [path.name for path in files if path not in set(pictures)]:
        logger.warning(
            f"{folder}: {len(passed_over)} of {len(files)} entries end in none of {', '.join(SUFFIXES)}, so they are "
            f"not taken for {what}: {listed(passed_over)}"
        )
    return pictures


def _mask_of(image: Path, masks: Iterable[Path]) -> Path | None:
    """The mask of the patch's whole name, else that of its name without suffix."""
    same = [mask for mask in masks if normalize("NFC", mask.stem) == normalize("NFC", image.stem)]
    exact = [mask for mask in same if mask.name == image.name]
    if len(same) > 1 and not exact:
        raise DataError(f"{same[0].parent}: {same[0].name} and {same[1].name} are both masks of {image.name}; keep one")
    return next(iter(exact or same), None)


def check_masks(patches: list[Patch]) -> None:
    """Raise DataError when a mask has another size than its patch; only the files' headers are read."""
    for patch in patches:
        mask, image = _size(patch.mask), _size(patch.image)
        if mask and image and mask != image:
            raise DataError(
                f"{patch.mask}: {mask[0]} x {mask[1]} px, but its patch has {image[0]} x {image[1]} px; cut "
                "both at the same size"
            )


def _size(path: Path | None) -> tuple[int, int] | None:
    """Width and height; None without a file, and for one that is damaged: its patch fails when it is read."""
    if path is None:
        return None
    try:
        with guard(path):
            return image_size(path)
    except OF_THE_ITEM:
        return None
