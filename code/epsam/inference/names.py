"""Names of outputs: of each input one of its own."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from epsam.runtime.records import is_plain


def stem(path: Path) -> str:
    """A file's name without its suffix."""
    return path.stem


def output_names(paths: Iterable[Path], folder: Path, short_name: Callable[[Path], str] = stem) -> dict[str, Path]:
    """Files below `folder` by the names of their outputs, whatever the order of `paths`.

    That is the short name, or the name with suffix where two have the same short one, or else also the folders.
    """
    left, names = set(paths), dict[str, Path]()
    for choose in (short_name, lambda path: path.name, lambda path: "_".join(path.relative_to(folder).parts)):
        count = Counter([choose(path) for path in left])
        alone = {choose(path): path for path in left if count[choose(path)] == 1 and is_plain(choose(path))}
        fresh = {name: path for name, path in alone.items() if name not in names}
        names |= fresh
        left -= set(fresh.values())
    for number, path in enumerate(sorted(left), 1):
        names[f"{path.name}_{number}"] = path
    return dict(sorted(names.items(), key=lambda item: item[1]))
