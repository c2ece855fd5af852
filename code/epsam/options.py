"""Options that commands share."""

import math
import os
from pathlib import Path
from typing import Any

import click

from epsam.runtime.user_paths import from_user

root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default="here",
    help="Folder of dataset/, checkpoints/ and runs/.",
)


class PathArgument(click.Path):
    """A path as a user gives it to a script, see runtime/user_paths.py."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return from_user(os.fspath(value))


class NumberRange(click.FloatRange):
    """A number in a range, which `nan` is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number
