"""Numbers and lists in messages."""

import pytest

from epsam.runtime.text import duration_text, listed, size_text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (7.6, "8 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (30 * 3600, "30 h 0 min"),
        (100 * 3600, "4 days 4 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds, shown):
    assert duration_text(seconds) == shown


def test_long_lists_say_how_much_they_leave_out():
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"
    assert listed((name for name in "abc"), 1) == "a and 2 more"
    assert listed([]) == ""


def test_sizes():
    assert [size_text(2**20 * mib) for mib in (1, 1023.4, 1536)] == ["1 MiB", "1023 MiB", "1.5 GiB"]
