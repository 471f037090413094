from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.dataset.left_out import LeftOut, read_left_out, write_left_out
from shards.errors import InputError
from shards.jsonl import from_lines, to_lines
from shards.prepare.failures import Failure, read_failures, write_failures
from shards.storage import open_storage

# Any code point: ends of lines of every kind, and surrogates, which file names that are no text hold.
TEXT = st.text(st.characters()) | st.text("\n\r\x0b\x0c\x1c\x85\u2028\u2029\udc80a", min_size=1)


@given(st.lists(st.fixed_dictionaries({"a": TEXT, "b": st.none() | st.integers() | st.lists(TEXT)})))
def test_what_is_written_is_read(records: list[dict[str, object]]) -> None:
    data = to_lines(records)
    assert from_lines(data) == records
    assert data.count(b"\n") == len(records)
    data.decode("utf-8")


@given(
    left_out=st.lists(st.builds(LeftOut, TEXT, TEXT, TEXT, TEXT), unique=True),
    failures=st.lists(st.builds(Failure, TEXT, TEXT)),
)
def test_the_lists_of_what_was_left_out_take_any_name(
    left_out: list[LeftOut], failures: list[Failure], tmp_path_factory: pytest.TempPathFactory
) -> None:
    storage = open_storage(tmp_path_factory.mktemp("lists"))
    unique = {entry.place: entry for entry in left_out}
    write_left_out(storage, left_out)
    assert read_left_out(storage) == list(unique.values())
    write_failures(storage, failures)
    assert read_failures(storage) == tuple(failures)


def test_a_line_is_read_as_people_write_it() -> None:
    assert to_lines([{"a": "späte"}]) == '{"a": "späte"}\n'.encode()
    assert from_lines(b'{"a": 1}\r\n{"a": 2}') == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("content", [b"{", b"[]\n", b"\xff\xfe{", json.dumps({"other": 1}).encode()])
def test_a_list_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for name, read in (("left_out.jsonl", read_left_out), ("failures.jsonl", read_failures)):
        storage.write(name, content)
        with pytest.raises(InputError, match=rf"^{tmp_path}/{name} is not a list of .*: remove it"):
            read(storage)
