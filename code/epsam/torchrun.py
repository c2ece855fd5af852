"""`python -m epsam.torchrun --nproc-per-node N -m epsam STAGE ...`: torchrun without its own account of a failure.

A stage that fails says why in one line; torchrun adds forty of its own.
"""

import logging
import sys
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from epsam.runs.record import end_with_owner

INTERRUPTED = 130


def main() -> None:
    """Take torchrun's arguments; ends with status 1 when a process failed, with 130 when it was stopped."""
    end_with_owner()
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        with TemporaryDirectory(prefix="epsam-torchrun-") as logs:  # torchrun leaves its own behind, empty
            run(parse_args(["--log-dir", logs, *sys.argv[1:]]))
    except ChildFailedError:
        sys.exit(1)
    except SignalException:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
