"""One process on the pretended GPU: commands of epsam as a user gives them, or the cases of gpu_cases.py.

python -m tests.on_pretended_gpu commands CARD '[["embed", "--config", "small.yaml"], ...]'
python -m tests.on_pretended_gpu cases FOLDER       prints, as JSON, what failed in each; FOLDER is theirs
"""

import json
import sys
import traceback
from pathlib import Path

# All else is imported where it is used: each worker process imports this file again.


def run_commands(card: str, commands: list[list[str]]) -> None:
    """Ends with the error of the first that fails."""
    from epsam.runtime import device
    from tests.gpu_cases import hardware

    device.choose_hardware = lambda *_, **__: hardware(card)  # what every command asks for its device
    from epsam.cli import cli

    for command in commands:
        cli(command, standalone_mode=False)


def run_cases(folder: Path) -> dict[str, str]:
    """What each case raised, by its name; empty where nothing."""
    from tests.gpu_cases import CASES

    failures = {}
    for name, case in CASES.items():
        failures[name] = ""
        try:
            case(folder / name)
        except Exception:  # noqa: BLE001  the test of this name shows it
            failures[name] = traceback.format_exc()
    return failures


if __name__ == "__main__":
    from tests import pretended_gpu

    pretended_gpu.register()
    kind, first, *more = sys.argv[1:]
    if kind == "commands":
        run_commands(first, json.loads(more[0]))
    else:
        sys.stdout.write(json.dumps(run_cases(Path(first))))
