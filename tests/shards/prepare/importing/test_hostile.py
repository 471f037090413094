"""Files that nobody's trainer wrote: each is left out with a reason, and the good ones beside it are imported."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.dataset.opened import open_dataset
from shards.prepare.failures import read_failures
from shards.prepare.importing.stage import ImportReport, import_precomputed
from shards.storage import Folder
from tests.support.precomputed import save_sample

SIZES = {"num_frames": 2, "height": 3, "width": 4, "fps": 24.0}


def latents(value: Any, **others: Any) -> Callable[[Path], None]:
    """A latents file with another tensor."""
    return lambda path: torch.save({"latents": value, **SIZES, **others}, path)


def numbers(**others: Any) -> Callable[[Path], None]:
    """A latents file whose tensor is good, with other numbers beside it."""
    return latents(torch.randn(24, 4), **others)


def squeezed(path: Path) -> None:
    """Half a gigabyte of zeros in half a megabyte."""
    plain = io.BytesIO()
    torch.save({"latents": torch.zeros(24, 4), **SIZES}, plain)
    with zipfile.ZipFile(plain) as found, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in found.namelist():
            file.writestr(name, bytes(1 << 29) if name.endswith("data/0") else found.read(name))


def overlapping(path: Path) -> None:
    """A table of contents that names the same bytes a thousand times."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data/0", bytes(1 << 16))
        (entry,) = file.infolist()
        file.filelist.extend([entry] * 1000)


def endless(depth: int = 60) -> list[Any]:
    """Lists in lists: short in a file, 2^60 items in print."""
    value: list[Any] = [0]
    for _ in range(depth):
        value = [value, value]
    return value


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "frames that are no number": (numbers(num_frames=float("nan")), "num_frames is not a finite number"),
    "endless frames": (numbers(num_frames=float("inf")), "num_frames is not a finite number"),
    "frames below zero": (numbers(num_frames=-2, height=-3), "num_frames is -2, not a size"),
    "no frames": (numbers(num_frames=0), "num_frames is 0, not a size"),
    "half a frame": (numbers(num_frames=1.5), "num_frames is 1.5, not a size"),
    "frames in a sparse tensor": (
        numbers(num_frames=torch.ones(1).to_sparse()),
        "num_frames is not a plain tensor (torch.sparse_coo, cpu)",
    ),
    "endless lists for frames": (
        numbers(num_frames=endless()),
        "num_frames is of type list, not a number",
    ),
    "an endless rate": (numbers(fps=float("inf")), "fps is not a finite number"),
    "a rate of 400 digits": (numbers(fps=10**400), "fps is not a finite number"),
    "a rate below zero": (numbers(fps=-24.0), "fps -24.0 is not positive"),
    "sparse latents": (
        latents(torch.eye(24).to_sparse()),
        "latents is not a plain tensor (torch.sparse_coo, cpu)",
    ),
    "compressed rows": (
        lambda path: latents(torch.eye(24).to_sparse_csr())(path),
        "latents is not a plain tensor (torch.sparse_csr, cpu)",
    ),
    "latents without memory": (
        latents(torch.zeros(24, 4, device="meta")),
        "latents is not a plain tensor (torch.strided, meta)",
    ),
    "nested latents": (
        lambda path: latents(torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]))(path),
        "latents is not a plain tensor (torch.strided, cpu)",
    ),
    "complex latents": (
        latents(torch.zeros(24, 4, dtype=torch.complex64)),
        "latents are torch.complex64; floating-point numbers are read",
    ),
    "latents of no frame": (latents(torch.zeros(4, 0, 3, 4)), "latents (4, 0, 3, 4) holds no number"),
    "latents of no channel": (latents(torch.zeros(24, 0)), "latents (24, 0) holds no number"),
    "ten terabytes of one number": (
        latents(torch.zeros(1, 1, 1, 1).expand(1, 1, 10**7, 10**6)),
        "latents (1, 1, 10000000, 1000000) has more numbers than the file holds",
    ),
    "a file that is compressed": (
        squeezed,
        "it is compressed, which torch.save never does; save it again with torch.save",
    ),
    "parts that overlap": (overlapping, "its parts claim more bytes than the file has"),
    "a table of other names": (
        lambda path: torch.save({(1, 2): 3, "x" * 1000: 4}, path),
        f"no tensor 'latents' in it (there are: {'x' * 200})",
    ),
}


def imported(root: Path, out: Path) -> tuple[ImportReport, dict[str, str]]:
    report = import_precomputed(root, out)
    return report, dict(read_failures(Folder(out)))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, of nested and compressed tensors
def test_a_hostile_file_is_one_failure(tmp_path: Path) -> None:
    """All in one folder: the first and the last sample of it are good."""
    names = {case: f"m{number:02d}" for number, case in enumerate(HOSTILE)}
    for name in ("a", *names.values(), "z"):
        save_sample(tmp_path / "in", f"{name}.mp4")
    for case, (write, _) in HOSTILE.items():
        path = tmp_path / "in" / "latents" / f"{names[case]}.pt"
        write(path)
        assert path.stat().st_size < 2**20, case
    report, failures = imported(tmp_path / "in", tmp_path / "out")
    found = {case: failures[f"latents/{names[case]}.pt"] for case in HOSTILE}
    assert found == {case: reason for case, (_, reason) in HOSTILE.items()}
    assert report.samples == 2
    assert open_dataset(tmp_path / "out").manifest.keys.tolist() == ["a", "z"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"prompt_attention_mask": torch.ones(12).to_sparse()},
            "conditions/b.pt: prompt_attention_mask is not a plain tensor (torch.sparse_coo, cpu)",
        ),
        (
            {"prompt_embeds": torch.zeros(1, 1).expand(12, 10**9)},
            "conditions/b.pt: prompt_embeds (12, 1000000000) has more numbers than the file holds",
        ),
        ({"prompt_embeds": torch.zeros(12, 0)}, "conditions/b.pt: prompt_embeds (12, 0) holds no number"),
    ],
)
def test_a_hostile_text_is_one_failure(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    for name in "abc":
        save_sample(tmp_path / "in", f"{name}.mp4")
    path = tmp_path / "in" / "conditions" / "b.pt"
    torch.save(torch.load(path, weights_only=True) | changed, path)
    report, failures = imported(tmp_path / "in", tmp_path / "out")
    assert (report.samples, failures) == (2, {"latents/b.pt": reason})


def test_a_file_name_that_is_no_text_is_a_failure(tmp_path: Path) -> None:
    save_sample(tmp_path / "in", "a.mp4")
    for folder in ("latents", "conditions"):
        path = tmp_path / "in" / folder / "a.pt"
        os.link(path, os.fsencode(path.parent) + b"/\xff.pt")
    report, failures = imported(tmp_path / "in", tmp_path / "out")
    assert report.samples == 1
    assert failures == {
        "latents/\\udcff.pt": "its name is not UTF-8 text",
        "conditions/\\udcff.pt": "no latents of this name",
    }


def test_what_no_check_has_thought_of_is_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        save_sample(tmp_path / "in", f"{name}.mp4", text=3 + (name == "b"))

    def odd(tensors: dict[str, torch.Tensor]) -> bytes:
        if len(tensors["prompt_embeds"]) == 3:
            raise RuntimeError("odd\nvery")
        return whole(tensors)

    from shards.prepare.importing import stage

    whole = stage.payload
    monkeypatch.setattr(stage, "payload", odd)
    report, failures = imported(tmp_path / "in", tmp_path / "out")
    assert (report.samples, failures) == (1, {"latents/a.pt": "RuntimeError: odd"})
