"""Reading ahead: in order, bounded, and ending when the use of it ends."""

import threading

import pytest

from epsam.errors import DataError
from epsam.runtime.read_ahead import AHEAD, read_ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_items_come_in_order(threads):
    assert list(read_ahead(lambda key: key * 2, range(20), threads)) == list(range(0, 40, 2))


def test_memory_is_bounded_by_the_number_of_threads():
    read = []
    items = read_ahead(lambda key: read.append(key) or key, range(100), 2)
    assert next(items) == 0
    assert next(items) == 1
    items.close()
    assert len(read) <= 2 + AHEAD * 2


def test_an_error_comes_in_the_place_of_its_item_and_the_threads_end():
    def read(key):
        if key == 5:
            raise DataError("the fifth")
        return key

    seen = []
    with pytest.raises(DataError, match="the fifth"):
        for item in read_ahead(read, range(100), 2):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


def test_whoever_stops_early_leaves_no_thread_behind():
    items = read_ahead(str, range(100), 2)
    assert next(items) == "0"
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]
