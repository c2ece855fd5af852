"""`python -m epsam STAGE --config FILE [section.key=value ...]`."""

import os
import sys
from pathlib import Path


def leave_out_current_folder() -> None:
    """Take the current folder, which `-m` puts first, from Python's path: a numpy.py there would be run for NumPy's.

    Python 3.11 and later do so themselves where PYTHONSAFEPATH is set, which worker processes inherit from here.
    """
    if getattr(sys.flags, "safe_path", False) or Path(sys.path[0]).resolve() == Path(__file__).resolve().parents[1]:
        return
    del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"


if __name__ == "__main__":
    leave_out_current_folder()
    from epsam.cli import main

    main()
