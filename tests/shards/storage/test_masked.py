"""No password of a URL is shown to others."""

from __future__ import annotations

import pytest

from shards.storage.masked import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("root: https://me:secret@host/data", "root: https://***@host/data"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("a: http://x@h/1\nb: https://y:z@h/2?at=1@2", "a: http://***@h/1\nb: https://***@h/2?at=1@2"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_names_and_passwords_of_urls_are_left_out(text: str, shown: str) -> None:
    assert masked(text) == shown
