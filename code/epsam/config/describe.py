"""Every setting with its default, what it may be, its unit and its meaning, read from the schema."""

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from epsam.config import schema
from epsam.config.schema import Config
from epsam.errors import ConfigError

UNITS = {
    "_px": "px",
    "_um2": "um2",
    "mpp": "um/px",
    "degrees": "degrees",
    "rotations": "degrees",
    "batch": "patches",
    "epochs": "epochs",
    "early_stop": "epochs",
    "lr_step": "epochs",
    "bn_recalibration_batches": "batches",
    "workers": "processes",
    "rounds": "rounds",
    "per_bin": "patches",
    "top_up": "patches",
    "at_random": "patches",
    "negatives": "patches",
    "classifier_extra": "patches",
    "bootstrap": "resamples",
    "percentile": "percent",
}
"""Units by how a setting's name ends; shares and other plain numbers have none."""


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted key, its default as YAML, what it may be, its unit ("" for none), its meaning."""

    key: str
    default: str
    values: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class SettingGroup:
    """A section of the settings; `name` is "" for those of the run as a whole."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def describe(name: str = "") -> list[SettingGroup]:
    """All sections, or the section or the one setting of this dotted name. Raises ConfigError for an unknown name."""
    groups = list(_groups(Config, "", None))
    if not name:
        return groups
    found = [group for group in groups if f"{group.name}.".startswith(f"{name}.")]
    if not found:
        found = [
            SettingGroup(group.name, group.meaning, (setting,))
            for group in groups
            for setting in group.settings
            if setting.key == name
        ]
    if not found:
        names = [group.name for group in groups if group.name] + [s.key for group in groups for s in group.settings]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        sections = ", ".join(group.name for group in groups if group.name and "." not in group.name)
        hint = f"did you mean `{close[0]}`?" if close else f"the sections are {sections}"
        raise ConfigError(f"no section or setting `{name}`; {hint}")
    return found


def as_text(groups: list[SettingGroup], width: int = 100) -> str:
    """The settings for a terminal of at least `width` characters."""
    lines = []
    for group in groups:
        lines += ["", f"# {group.name}: {group.meaning}" if group.name else f"# {group.meaning}"]
        for setting in group.settings:
            lines += [f"{setting.key} = {setting.default}", f"    ({_allowed(setting)})"]
            lines += textwrap.wrap(setting.meaning, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines[1:])


def as_markdown(groups: list[SettingGroup]) -> str:
    """The settings as tables, one for each section."""
    lines = []
    for group in groups:
        lines += ["", f"## {group.name or 'The run'}", "", group.meaning, ""]
        lines += ["| setting | default | values | meaning |", "|---|---|---|---|"]
        lines += [f"| `{s.key}` | `{s.default}` | {_allowed(s)} | {s.meaning} |" for s in group.settings]
    return "\n".join(lines[1:])


def _allowed(setting: Setting) -> str:
    return f"{setting.values}; {setting.unit}" if setting.unit else setting.values


def _groups(model: type[BaseModel], name: str, defaults: BaseModel | None) -> Iterator[SettingGroup]:
    """The section `model` and those inside it; `defaults` is the instance whose values are the defaults."""
    hints = get_type_hints(model, include_extras=True)
    prefix = f"{name}." if name else ""
    inner, settings = [], []
    for field_name, field in model.model_fields.items():
        default = getattr(defaults, field_name) if defaults is not None else field.default
        key = f"{prefix}{field_name}"
        if isinstance(default, BaseModel):
            inner.append((type(default), key, default))
        else:
            meaning = _meanings(schema)[model.__name__].get(field_name, "")
            shown = _as_yaml(default) if not field.is_required() else "the file's name"
            settings.append(Setting(key, shown, _values(hints[field_name]), _unit(field_name), meaning))
    yield SettingGroup(name, " ".join(inspect.cleandoc(model.__doc__ or "").split()), tuple(settings))
    for part in inner:
        yield from _groups(*part)


@cache
def _meanings(module: ModuleType) -> dict[str, dict[str, str]]:
    """Docstrings of the fields of each class: the string below a field, which Python itself forgets."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    meanings: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        of_class = meanings.setdefault(node.name, {})
        for field, below in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                of_class[field.target.id] = " ".join(str(below.value.value).split())
    return meanings


def _unit(field_name: str) -> str:
    return next((unit for end, unit in UNITS.items() if field_name.endswith(end)), "")


def _as_yaml(value: Any) -> str:
    """The value as it stands in a settings file, in one line."""
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()


def _values(annotation: Any) -> str:
    """What a setting of this type may be, in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(str(word) for word in parts)
    if origin is Annotated:
        return _number(parts[0], [limit for item in parts[1:] for limit in _limits(item)])
    if origin in (tuple, list):
        if len(parts) == 2 and parts[1] is not Ellipsis and parts[0] == parts[1]:
            return f"two of: {_values(parts[0])}"
        return f"list of: {_values(parts[0])}"
    if origin is dict:
        return f"for each of {_values(parts[0])}: {_values(parts[1])}"
    if parts:  # a union
        return ", ".join("null" if part is type(None) else _values(part) for part in parts)
    return {bool: "true, false", int: "whole number", float: "number", str: "text", Path: "path"}[annotation]


def _limits(item: Any) -> list[Any]:
    return list(item.metadata) if isinstance(item, FieldInfo) else [item]


def _number(kind: type, limits: list[Any]) -> str:
    """`0 to 1`, `1 or more`, `above 0`: the range of a number."""
    if kind not in (int, float):
        return _values(kind)
    given = {
        name: getattr(limit, name) for limit in limits for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)
    }
    low = f"{given['ge']:g}" if "ge" in given else f"above {given['gt']:g}" if "gt" in given else ""
    high = f"{given['le']:g}" if "le" in given else f"below {given['lt']:g}" if "lt" in given else ""
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if "ge" in given else low or high or _values(kind)
