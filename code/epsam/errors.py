"""Errors that a user can fix: what is wrong, where, and what to do. The command line shows them as one line."""

import re

MAX_CHARACTERS = 480
"""Of a message: a name or value of a hostile file may have megabytes."""
TAIL = 160
"""Of them from the message's end, where it says what to do."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys, that turn the direction of writing, or that are no text."""


def one_line(text: str, most: int = MAX_CHARACTERS) -> str:
    """`text` without line breaks, control characters escaped (ESC as \\x1b), at most `most` characters: not the middle."""
    if len(text) > 4 * most:
        text = text[: 2 * most] + text[-2 * most :]
    text = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\n", " "))
    if len(text) <= most:
        return text
    return f"{text[: most - TAIL - 5]} ... {text[-TAIL:]}"


class EpsamError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a defect of this program."""

    details: str = ""
    """For the log file alone: the traceback of the exception behind it, if that was not expected."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class ConfigError(EpsamError):
    """A setting is unknown, wrong or contradicts another."""


class SlideError(EpsamError):
    """A slide cannot be opened or read."""


class AnnotationError(EpsamError):
    """An annotation file cannot be used."""


class DataError(EpsamError):
    """Patches, masks or a table are missing or do not fit together."""


class CheckpointError(EpsamError):
    """Weights are missing, damaged or belong to another model."""


class StateError(EpsamError):
    """A run cannot continue as it was left: changed settings, a lock, a missing stage."""
