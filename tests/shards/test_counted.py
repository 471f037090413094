from __future__ import annotations

import pytest

from shards.counted import counted


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples"), (1234, "1,234 samples")]
)
def test_one_is_no_plural(number: int, words: str) -> None:
    assert counted(number, "sample") == words
