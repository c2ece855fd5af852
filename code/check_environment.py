"""Whether an environment has what requirements.txt lists: python check_environment.py REQUIREMENTS

Run by setup.sh with the interpreter of VENV, which may lack every package, so the standard library alone is used.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)")
SAME = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}
"""Packages that hold the same modules."""


def lacking(requirements: str) -> list[tuple[str, str]]:
    """Requirements that are not met, each with what is there of them: "" or a version that is too old."""
    found = []
    for name, least in REQUIREMENT.findall(re.sub(r"#.*", "", requirements)):
        versions = [_version(other) for other in (name, *SAME.get(name, ()))]
        if not any(_numbers(version) >= _numbers(least) for version in versions if version):
            found.append((f"{name}>={least}", next(filter(None, versions), "")))
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name) or ""
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """`2.5.1+cpu` as (2, 5, 1)."""
    numbers = [int(part) for part in re.split(r"[^0-9.]", version)[0].split(".") if part]
    while numbers and not numbers[-1]:  # 2.0 is 2
        del numbers[-1]
    return tuple(numbers)


def main() -> None:
    """Say what is missing in one line, and how to install it; exit status 1 then."""
    if missing := lacking(Path(sys.argv[1]).read_text(encoding="utf-8")):
        named = ", ".join(what + (f" ({there} is there)" if there else "") for what, there in missing)
        words = " ".join(f"'{what}'" for what, _ in missing)
        sys.exit(f"error: {sys.prefix} lacks {named}: run {sys.executable} -m pip install {words}")


if __name__ == "__main__":
    main()
