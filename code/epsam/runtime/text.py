"""Figures and lists as text for people."""

import math
from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Seconds with two units at most: 8 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def and_more(names: Sequence[str], most: int) -> str:
    """The first `most` names, and how many more there are: `a, b and 5 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `length`, which is positive."""
    power = 10 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length * (1 + 1e-9))


def length_text(um: float) -> str:
    """A length given in um: 50 µm, 2 mm."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
