"""Checks, before a long run, that everything it needs is there."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from epsam.errors import EpsamError
from epsam.runtime.log import logger


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    status: Literal["ok", "warning", "error"]
    message: str
    fix: str = ""
    """What to do about it."""


def as_lines(checks: list[Check]) -> list[str]:
    """One line per check, and one more with how to fix what is wrong."""
    lines = []
    for check in checks:
        lines.append(f"[{check.status:>7}] {check.name}: {check.message}")
        if check.fix and check.status != "ok":
            lines.append(f"          -> {check.fix}")
    return lines


def as_json(checks: list[Check]) -> str:
    """The checks as a JSON array."""
    return json.dumps([asdict(check) for check in checks], indent=1, ensure_ascii=False)


def report(checks: list[Check]) -> None:
    """Log all checks; raises EpsamError naming those that failed."""
    for line in as_lines(checks):
        logger.info(line)
    failed = [check.name for check in checks if check.status == "error"]
    if failed:
        raise EpsamError(f"doctor found errors: {', '.join(failed)}; see above how to fix them")
