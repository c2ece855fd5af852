"""Settings out of a YAML file and `section.key=value` overrides.

Every unknown key or wrong value raises ConfigError naming the key and the closest right one.
"""

import datetime
import difflib
import reprlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from epsam.config.paths import drop_paths, path_from_user
from epsam.config.schema import Config
from epsam.config.yaml_text import NOT_YAML, read_yaml
from epsam.errors import ConfigError
from epsam.runtime.log import logger
from epsam.runtime.user_paths import expand_home, from_user
from epsam.shipped import CONFIGS


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML file and apply overrides of the form `section.key=value` (value in YAML).

    `base: NAME` in the file, a shipped config or the path of another file (from the folder of this one), gives the
    settings that the file itself does not, except the name. Raises ConfigError for a missing or malformed file, bases
    that lead back to a file, an unknown key or a wrong value.
    """
    settings = _read_with_base(Path(path))
    settings.setdefault("name", Path(path).stem)
    return config_from(settings, str(path), overrides)


def _read_with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Nested settings of a file over those of its bases; `above` are the files that have it for a base."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: `base` leads back to this file; name another base or none")
    settings = _nested(_read(path), str(path))
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise ConfigError(f"{path}: `base` names a shipped config ({_shipped_names()}) or another settings file")
    below = _read_with_base(_find_base(base, path), (*above, path.resolve()))
    return _merged({key: value for key, value in below.items() if key != "name"}, settings)


def _find_base(base: str, path: Path) -> Path:
    """The shipped config or file that `base` in the file `path` names."""
    found = find_config(base)
    if found.parent == CONFIGS:
        return found
    beside = path.parent / expand_home(base)
    if beside.is_file():
        return beside
    close = difflib.get_close_matches(base, [file.stem for file in CONFIGS.glob("*.yaml")], n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`?" if close else f"shipped are {_shipped_names()}"
    raise ConfigError(f"{path}: no base `{base}`; {hint}")


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings of `below` where `above` has none, section by section."""
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = read_yaml(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such settings file; give the path of a YAML file or one of {_shipped_names()}"
        ) from None
    except (OSError, *NOT_YAML) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {_one_line(error)}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected settings such as `name: mine`, found {type(settings).__name__}")
    return settings


def _shipped_names() -> str:
    return ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))


def _nested(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """Settings with dotted keys, or nested already, as nested ones; errors name `source`."""
    nested: dict[str, Any] = {}
    try:
        for key, value in settings.items():
            _add(nested, str(key), value)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return nested


def config_from(
    settings: dict[str, Any], source: str, overrides: tuple[str, ...] = (), *, with_paths: bool = True
) -> Config:
    """Check settings, nested or with dotted keys, after applying overrides; errors name `source`.

    Without `with_paths`, as for settings that came with weights, only the overrides may give paths.
    """
    nested = _nested(settings, source)
    if not with_paths and (dropped := drop_paths(nested)):
        logger.warning(
            f"{source}: paths are not taken from settings that came with weights; give {', '.join(dropped)} "
            "yourself where needed"
        )
    for override in overrides:
        _apply(nested, override)
    try:
        return Config.model_validate(nested)
    except (ValidationError, RecursionError) as error:
        given = f" with {' '.join(overrides)}" if overrides else ""
        raise ConfigError(f"{source}{given}: {_explain(error)}") from None


_SHORT = reprlib.Repr()


_SHORT.maxlevel = 2  # a kilobyte of YAML can stand for gigabytes of nested lists


def find_config(name_or_path: str) -> Path:
    """Path of a shipped config by its name (`demo`), or the path itself, from where the user stands."""
    shipped = CONFIGS / f"{name_or_path}.yaml"
    return shipped if shipped.is_file() else from_user(name_or_path)


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"`{override}`: an override reads section.key=value, e.g. retrain.rounds=2")
    try:
        value = read_yaml(text)
    except NOT_YAML as error:
        raise ConfigError(f"`{override}`: the value is not YAML: {_one_line(error)}") from None
    _put(settings, key, path_from_user(key, value))


def _add(settings: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a setting of a file, which may give a section in parts: `classifier.lr` and, elsewhere, `classifier`."""
    one: dict[str, Any] = {}
    _put(one, dotted, value)
    if twice := _given_in_both(settings, one):
        raise ConfigError(f"`{twice}` comes twice; keep one of them")
    settings |= _merged(settings, one)


def _given_in_both(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first setting that both nested settings give, dotted; empty where there is none."""
    for key in one.keys() & other.keys():
        inner, outer = one[key], other[key]
        if not (isinstance(inner, dict) and isinstance(outer, dict)):
            return str(key)
        if twice := _given_in_both(inner, outer):
            return f"{key}.{twice}"
    return ""


def _put(settings: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"`{dotted}`: `{section}` is a value, not a section")
    settings[key] = value


YAML_HINTS = {
    "string_type": "; put quotes around it: YAML reads numbers, dates, yes and no as other than text",
    "list_type": "; a list is written [a, b]",
}
"""What to do where YAML read a value as another type than was meant."""


def _explain(error: ValidationError | RecursionError) -> str:
    """One line for all complaints, with the closest right key for unknown ones."""
    if isinstance(error, RecursionError):
        return "settings are nested too deeply"
    lines = []
    for item in error.errors():
        where = ".".join(
            str(part) for part in item["loc"] if not str(part).startswith(("literal[", "function-", "constrained-"))
        )
        if item["type"] == "extra_forbidden":
            keys = _keys_beside(item["loc"])
            close = difflib.get_close_matches(str(item["loc"][-1]), keys, n=1, cutoff=0.5)
            hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(keys)}"
            lines.append(f"unknown setting `{where}`; {hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = item["input"]
            if isinstance(given, datetime.date):
                given = str(given)
            shown = f" (given: {_SHORT.repr(given)})" if isinstance(given, str | int | float | list | None) else ""
            hint = YAML_HINTS.get(item["type"], "") if isinstance(given, str | int | float) else ""
            lines.append(f"`{where or 'settings'}`: {message}{shown}{hint}")
    return "; ".join(lines)


def _keys_beside(location: tuple) -> list[str]:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
