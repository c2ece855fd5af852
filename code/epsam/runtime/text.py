"""Lists, sizes, durations and lengths as text."""

import math
from collections.abc import Iterable

UTF16_HEADS = (b"\xff\xfe", b"\xfe\xff")
"""Byte-order marks of UTF-16, as Windows programs write them."""


def listed(names: Iterable[str], count: int = 5, separator: str = ", ") -> str:
    """The first `count` names, and how many more there are: "a, b and 3 more"."""
    names = list(names)
    return separator.join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def size_text(count: float) -> str:
    """Bytes: 310 MiB, 2.5 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration_text(seconds: float) -> str:
    """Seconds: 8 s, 3 min 20 s, 2 h 5 min, 4 days 3 h."""
    seconds = round(seconds)
    for unit, name, smaller, smaller_name in ((86400, "days", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= (2 if name == "days" else 1) * unit:
            return f"{seconds // unit} {name} {seconds % unit // smaller} {smaller_name}"
    return f"{seconds} s"


def round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `length`, which is positive."""
    power = 10 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length * (1 + 1e-9))


def length_text(um: float) -> str:
    """A length given in um: 50 µm, 2 mm."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
