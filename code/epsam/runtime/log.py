"""Logging: plain lines on stdout and in the log file; progress bars go to stderr alone."""

import contextlib
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from epsam.errors import one_line

logger = logging.getLogger("epsam")
MAX_CHARACTERS = 2000
"""Of a record; our longest lines, of results, have about 1200."""


class OneLine(logging.Formatter):
    """One line a record, whatever names of files or XML elements hold; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message, MAX_CHARACTERS)
        return super().formatMessage(record)


class BesideBars(logging.Handler):
    """Lines on stdout that do not run into a progress bar; none where stdout is closed."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stdout is None:
            return
        with contextlib.suppress(OSError):  # the terminal is gone: the run continues, the file has the line
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


class LogFile(logging.FileHandler):
    """The log file. When it cannot be written any more (a full disk), one line says so, and the run continues."""

    broken = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.broken:
            self.broken = True
            BesideBars().emit(
                logging.makeLogRecord(
                    {"msg": f"{self.baseFilename}: lines are missing from here on ({sys.exc_info()[1]})"}
                )
            )


def set_up_logging(file: Path | None = None, *, errors_only: bool = False) -> None:
    """Send the package's log to stdout and, appended, to `file`; warnings of libraries go there too.

    With `errors_only`, that of a process that helps another, there are no progress bars either.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # lines that a full disk did not take
            handler.close()
    handlers: list[logging.Handler] = [BesideBars()]
    handlers[0].setFormatter(OneLine("%(message)s"))
    handlers[0].setLevel(logging.INFO)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = LogFile(file, encoding="utf-8", errors="backslashreplace", delay=errors_only)
        to_file.setFormatter(OneLine("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        handlers.append(to_file)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.ERROR if errors_only else logging.WARNING)
    logger.setLevel(logging.ERROR if errors_only else logging.DEBUG)  # for the file: tracebacks of what failed alone
    logging.captureWarnings(True)


def progress(iterable=None, *, total: int | None = None, desc: str, unit: str = "it", initial: int = 0) -> tqdm:
    """A tqdm bar on stderr, the same everywhere; none where stderr is no terminal."""
    return tqdm(
        iterable,
        total=total,
        desc=one_line(desc),
        unit=unit,
        initial=initial,
        file=sys.stderr,
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=0.5,
        disable=None if logger.isEnabledFor(logging.WARNING) else True,
    )
