"""Settings that are paths: they never come from, nor go into, what travels with weights."""

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from epsam.config.schema import Config, is_name_of_run
from epsam.runtime.sidecar import flatten
from epsam.runtime.user_paths import from_user


def path_settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, frozenset]]:
    """Every setting that can hold a path, as a dotted key, with the words that may stand in place of a path."""
    for name, field in model.model_fields.items():
        types = set(_types_in(field.annotation))
        for part in types:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from path_settings(part, f"{prefix}{name}.")
        if any(isinstance(part, type) and issubclass(part, PurePath) for part in types):
            words = (word for part in types if get_origin(part) is Literal for word in get_args(part))
            yield f"{prefix}{name}", frozenset(words)


def _types_in(annotation: Any) -> Iterator[Any]:
    """The annotation and all that it is made of: members of unions, items of containers."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _types_in(part)


def drop_paths(settings: dict[str, Any]) -> list[str]:
    """Delete every path from nested `settings`, so that the default counts; gives the dotted keys of those deleted."""
    dropped = []
    for key, words in path_settings():
        *sections, name = key.split(".")
        place: Any = settings
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict) and name in place and not _is_harmless(place[name], words):
            del place[name]
            dropped.append(key)
    return dropped


def _is_harmless(value: Any, words: frozenset) -> bool:
    return value is None or (isinstance(value, str) and value in words)


def path_from_user(key: str, value: Any) -> Any:
    """The value that a user gives to the setting `key`: a path counts from where the user stands, other values stay."""
    words = dict(path_settings()).get(key)
    if words is None or not isinstance(value, str) or value in words:
        return value
    return value if key == "init_from" and is_name_of_run(value) else str(from_user(value))


def counted_from(config: Config, top: Path) -> Config:
    """The settings with paths as they are opened: relative ones count from the project's top level, `top`."""
    settings = config.model_dump()
    for key, _ in path_settings():
        *sections, name = key.split(".")
        place = settings
        for section in sections:
            place = place[section]
        if isinstance(place[name], Path):
            place[name] = top / place[name]
    return Config.model_validate(settings)


def settings_for_weights(config: Config, mpp: float | None) -> dict[str, Any]:
    """All settings as they are saved beside weights: dotted keys, without the paths of this machine.

    `mpp`: um/px of the patches of the training, None where it is not known, as of patches that were brought: these were
    not cut at `patches.target_mpp`, so that is not saved.
    """
    settings = config.model_dump(mode="json")
    drop_paths(settings)
    if mpp is None:
        settings["patches"]["target_mpp"] = None
    return flatten(settings)
