from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.prepare.importing.pt import FileError, load, number, plain_numbers, tensor


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value",
    [7, 7.0, torch.tensor(7), torch.tensor([7.0]), np.int64(7), np.int32(7), np.float64(7), np.float32(7)],
)
def test_numbers_of_every_kind_are_read(tmp_path: Path, value: Any, zipped: bool) -> None:
    path = saved(tmp_path / "a.pt", {"n": value}, _use_new_zipfile_serialization=zipped)
    with plain_numbers():
        found = number(load(path), "n")
    assert found == 7
    assert type(found) in (int, float)


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (Path("x"), "pathlib"),
        (np.array([1, 2]), "_reconstruct"),
        (np.str_("text"), "refuses it"),
    ],
)
def test_other_objects_are_not_made(tmp_path: Path, value: Any, asked: str) -> None:
    path = saved(tmp_path / "a.pt", {"n": value})
    with plain_numbers(), pytest.raises(FileError, match=asked):
        load(path)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"latents": torch.zeros(1), "n": Attack(tmp_path / "hit")})
    with plain_numbers(), pytest.raises(FileError, match=r"it asks for posix.mkdir"):
        load(path)
    assert not (tmp_path / "hit").exists()


def test_the_wider_door_is_closed_again(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"n": np.int64(7)})
    with plain_numbers():
        load(path)
    with pytest.raises(FileError, match=r"numpy.*scalar"):
        load(path)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.9, 0.99])
def test_damaged_files_are_said_to_be(tmp_path: Path, keep: float) -> None:
    path = saved(tmp_path / "a.pt", {"latents": torch.zeros(5000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with plain_numbers(), pytest.raises(FileError, match=r"not a readable .pt file"):
        load(path)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds a list"):
        load(saved(tmp_path / "a.pt", [torch.zeros(2)]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"no tensor 'x' in it \(there are: x\)"),
        (torch.zeros(2, dtype=torch.int64), "x are torch.int64; floating-point"),
        (torch.tensor([1.0, float("nan")]), "not finite"),
        (torch.tensor([1.0, float("-inf")]), "not finite"),
    ],
)
def test_tensors_are_finite_numbers(value: Any, message: str) -> None:
    with pytest.raises(FileError, match=message):
        tensor({"x": value}, "x")


@pytest.mark.parametrize("value", [True, "7", [7], torch.tensor([1, 2]), {}])
def test_what_is_not_a_number_is_refused(value: Any) -> None:
    with pytest.raises(FileError, match=f"^n is of type {type(value).__name__}, not a number$"):
        number({"n": value}, "n")


def test_an_absent_number_is_none() -> None:
    assert number({}, "n") is None
    assert number({"n": None}, "n") is None
