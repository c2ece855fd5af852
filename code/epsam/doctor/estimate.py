"""How much disk a run will take, from its settings alone."""

from epsam.config import Config, Selection

PNG_BYTES_PER_PX = 2.2
"""H&E at level 0 as PNG, with its mask."""
EMBEDDING_BYTES = {"demo": 128 * 16 * 16 * 2}
"""fp16; SAM's three sizes all give 256 x 64 x 64."""
SAM_EMBEDDING_BYTES = 256 * 64 * 64 * 2


def _positives(selection: Selection, bin_width: float, share: tuple[float, float]) -> int:
    if selection.at_random is not None:
        return selection.at_random
    return round((share[1] - share[0]) / bin_width) * (selection.per_bin or 0)


def disk_bytes(config: Config) -> int:
    """Bytes of patches and embeddings, an upper estimate: bins may hold fewer patches than asked for."""
    patches = config.patches
    positives = {
        split: _positives(getattr(patches, split), patches.bin_width, patches.positive_share)
        for split in ("train", "val", "test")
    }
    others = sum(getattr(patches, s).negatives + getattr(patches, s).classifier_extra for s in positives)
    pngs = (sum(positives.values()) + others) * patches.size_px**2 * PNG_BYTES_PER_PX
    if config.sam.embeddings == "off":
        return round(pngs)
    kept = positives["train"] * config.sam.views + positives["val"] + positives["test"]
    return round(pngs + kept * EMBEDDING_BYTES.get(config.sam.model_type, SAM_EMBEDDING_BYTES))
