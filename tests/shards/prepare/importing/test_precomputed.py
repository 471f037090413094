from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import InputError
from shards.prepare.importing.precomputed import Contents, Trio, locate, read_sample, survey
from shards.prepare.importing.pt import FileError, plain_numbers
from tests.support.precomputed import pack_latents, save_condition, save_latents, save_sample

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = BITS[a.element_size()]
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))
    )


def read(root: Path, *parts: str) -> Contents:
    latents, condition, *references = parts or ("latents/a.pt", "conditions/a.pt")
    with plain_numbers():
        return read_sample(root, Trio(latents, condition, tuple(references)))


@settings(max_examples=30, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 5)] * 3),
    channels=st.integers(1, 6),
    text=st.integers(1, 7),
    padding=st.integers(0, 5),
    left=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    flat=st.booleans(),
)
def test_every_bit_of_latents_and_real_tokens_arrives(
    tmp_path_factory: pytest.TempPathFactory,
    grid: tuple[int, int, int],
    channels: int,
    text: int,
    padding: int,
    left: bool,
    dtype: torch.dtype,
    flat: bool,
) -> None:
    root = tmp_path_factory.mktemp("precomputed")
    latents, embeds = torch.randn(channels, *grid).to(dtype), torch.randn(text, 3).to(dtype)
    file = save_latents(root / "latents", "a.mp4", latents)
    if not flat:
        torch.save({"latents": latents}, file)
    save_condition(root / "conditions", "a.mp4", embeds, text + padding, left)
    found = read(root)
    assert same_bits(found.latents, latents)
    assert same_bits(found.prompt_embeds, embeds)
    assert found.latents.is_contiguous()


@pytest.mark.parametrize(
    "value",
    [4, 4.0, torch.tensor(4), torch.tensor([4]), torch.tensor(4.0), np.int64(4), np.int32(4), np.float64(4)],
)
def test_sizes_and_rates_come_as_any_kind_of_number(tmp_path: Path, value: Any) -> None:
    save_sample(tmp_path, "a.mp4")
    latents = torch.randn(3, 4, 4, 4)
    stored = {
        "latents": pack_latents(latents[None])[0],
        "num_frames": value,
        "height": value,
        "width": value,
        "fps": value,
    }
    torch.save(stored, tmp_path / "latents" / "a.pt")
    found = read(tmp_path)
    assert torch.equal(found.latents, latents)
    assert (found.fps, type(found.fps)) == (4.0, float)


@pytest.mark.parametrize("batched", ["latents", "embeds"])
def test_a_batch_of_one_is_taken_off(tmp_path: Path, batched: str) -> None:
    tensors = save_sample(tmp_path, "a.mp4")
    name, key = {"latents": ("latents", "latents"), "embeds": ("conditions", "prompt_embeds")}[batched]
    stored = torch.load(tmp_path / name / "a.pt", weights_only=True)
    torch.save(stored | {key: stored[key][None]}, tmp_path / name / "a.pt")
    found = read(tmp_path)
    assert torch.equal(found.latents, tensors["latents"])
    assert torch.equal(found.prompt_embeds, tensors["prompt_embeds"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.float32])
def test_the_mask_may_be_of_any_kind_and_cut_in_the_middle(tmp_path: Path, dtype: torch.dtype) -> None:
    save_sample(tmp_path, "a.mp4")
    embeds = torch.randn(5, 3)
    mask = torch.tensor([0, 1, 0, 1, 1]).to(dtype)
    torch.save(
        {"prompt_embeds": embeds, "prompt_attention_mask": mask[None]}, tmp_path / "conditions" / "a.pt"
    )
    assert torch.equal(read(tmp_path).prompt_embeds, embeds[[1, 3, 4]])


def test_files_from_before_rates_were_kept_have_none(tmp_path: Path) -> None:
    save_sample(tmp_path, "a.mp4", fps=None)
    assert read(tmp_path).fps is None


LATENTS: dict[str, tuple[dict[str, Any], str]] = {
    "no latents": ({"latents": None}, "no tensor 'latents'"),
    "no frames": (
        {"num_frames": None},
        r".*24 tokens do not have the num_frames, height, width \(None, 3, 4\)",
    ),
    "other height": ({"height": 5}, r".*24 tokens do not have .* \(2, 5, 4\)"),
    "other grid": (
        {"latents": torch.zeros(4, 2, 3, 5)},
        r"latents \(4, 2, 3, 5\) do not have .* \(2, 3, 4\)",
    ),
    "one dimension": ({"latents": torch.zeros(4)}, r"latents \(4,\) are neither"),
    "two in a batch": ({"latents": torch.zeros(2, 24, 4)}, r"latents \(2, 24, 4\) are neither"),
    "whole numbers": ({"latents": torch.zeros(24, 4, dtype=torch.int8)}, "latents are torch.int8"),
    "not finite": (
        {"latents": torch.full((24, 4), float("nan"))},
        "latents hold numbers that are not finite",
    ),
    "no rate": ({"fps": 0.0}, "fps 0.0 is not positive"),
    "endless rate": ({"fps": float("inf")}, "fps is not a finite number"),
    "rate as text": ({"fps": "24"}, "fps is of type str, not a number"),
}


@pytest.mark.parametrize("case", LATENTS)
def test_latents_that_cannot_be_used_are_named(tmp_path: Path, case: str) -> None:
    changed, message = LATENTS[case]
    save_sample(tmp_path, "a.mp4")
    path = tmp_path / "latents" / "a.pt"
    torch.save(torch.load(path, weights_only=True) | changed, path)
    with pytest.raises(FileError, match=f"^latents/a.pt: {message}"):
        read(tmp_path)


CONDITIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no embedding": ({"prompt_embeds": None}, "no tensor 'prompt_embeds'"),
    "no mask": ({"prompt_attention_mask": None}, "prompt_attention_mask of 12 tokens is missing"),
    "short mask": (
        {"prompt_attention_mask": torch.ones(11)},
        "prompt_attention_mask of 12 tokens is missing",
    ),
    "empty mask": ({"prompt_attention_mask": torch.zeros(12)}, "prompt_attention_mask keeps no token"),
    "pooled": ({"prompt_embeds": torch.zeros(16)}, r"prompt_embeds \(16,\) are not \[T, D\]"),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_conditions_that_cannot_be_used_are_named(tmp_path: Path, case: str) -> None:
    changed, message = CONDITIONS[case]
    save_sample(tmp_path, "a.mp4")
    path = tmp_path / "conditions" / "a.pt"
    torch.save(torch.load(path, weights_only=True) | changed, path)
    with pytest.raises(FileError, match=f"^conditions/a.pt: {message}"):
        read(tmp_path)


def test_a_broken_reference_is_named_itself(tmp_path: Path) -> None:
    save_sample(tmp_path, "a.mp4", references=("depth",))
    (tmp_path / "depth" / "a.pt").write_bytes(b"")
    with pytest.raises(FileError, match=r"^depth/a.pt: not a readable"):
        read(tmp_path, "latents/a.pt", "conditions/a.pt", "depth/a.pt")


def test_nested_folders_are_matched_by_their_whole_path(tmp_path: Path) -> None:
    for media in ("a.mp4", "x/a.mp4", "x/y/a.mp4", "x/b c.mov"):
        save_sample(tmp_path, media)
    found = survey(tmp_path)
    assert [files.latents for files in found.samples] == [
        f"latents/{name}.pt" for name in ("a", "x/a", "x/b c", "x/y/a")
    ]
    assert all(files.condition == files.latents.replace("latents", "conditions") for files in found.samples)
    assert found.orphans == ()


@pytest.mark.parametrize("folder", ["", "deep/"])
def test_the_names_of_before_may_2025_are_matched(tmp_path: Path, folder: str) -> None:
    for number in (0, 12):
        save_sample(tmp_path, "a.mp4")
        for part, name in (("latents", "latent"), ("conditions", "condition")):
            target = tmp_path / part / folder / f"{name}_{number:08d}.pt"
            target.parent.mkdir(exist_ok=True)
            shutil.move(tmp_path / part / "a.pt", target)
    assert [files[:2] for files in survey(tmp_path).samples] == [
        (f"latents/{folder}latent_{number}.pt", f"conditions/{folder}condition_{number}.pt")
        for number in ("00000000", "00000012")
    ]


def test_a_clip_that_is_itself_called_latent_keeps_its_own_caption(tmp_path: Path) -> None:
    for media in ("latent_1.mp4", "condition_1.mp4"):
        save_sample(tmp_path, media)
    assert {files.condition for files in survey(tmp_path).samples} == {
        "conditions/latent_1.pt",
        "conditions/condition_1.pt",
    }


def test_what_has_no_partner_is_listed(tmp_path: Path) -> None:
    for media in "abcd":
        save_sample(tmp_path, f"{media}.mp4", references=("reference_latents",))
    for gone in ("conditions/a", "latents/b", "reference_latents/c"):
        (tmp_path / f"{gone}.pt").unlink()
    found = survey(tmp_path)
    assert [files.latents for files in found.samples] == ["latents/d.pt"]
    assert dict(found.orphans) == {
        "latents/a.pt": "no text embedding of this name in conditions/",
        "latents/c.pt": "no reference reference_latents/c.pt",
        "conditions/b.pt": "no latents of this name",
        "reference_latents/b.pt": "no latents of this name",
    }


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (None, ("reference_latents",)),
        ([], ()),
        (["depth"], ("depth",)),
        (["pose", "depth"], ("pose", "depth")),
    ],
)
def test_reference_folders_of_any_name(
    tmp_path: Path, asked: list[str] | None, taken: tuple[str, ...]
) -> None:
    save_sample(tmp_path, "x/a.mp4", references=("reference_latents", "depth", "pose"))
    (tmp_path / "decoded_videos").mkdir()
    found = survey(tmp_path, asked)
    assert found.taken == taken
    assert found.samples[0].references == tuple(f"{name}/x/a.pt" for name in taken)
    assert found.references == {"depth": 1, "pose": 1, "reference_latents": 1}


@pytest.mark.parametrize("name", ["nowhere", "latents", "conditions"])
def test_a_reference_folder_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    save_sample(tmp_path, "a.mp4", references=("depth",))
    with pytest.raises(InputError, match=f"--reference-dir {name}: .* has depth"):
        survey(tmp_path, [name])


@pytest.mark.parametrize("inner", ["", ".precomputed"])
def test_the_folder_or_the_one_it_is_in(tmp_path: Path, inner: str) -> None:
    save_sample(tmp_path / inner, "a.mp4")
    assert locate(tmp_path) == tmp_path / inner
    assert len(survey(tmp_path).samples) == 1


def test_folders_that_are_none_of_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        locate(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no latents/ and conditions/: give the .precomputed"):
        locate(tmp_path)
    (tmp_path / "latents").mkdir()
    with pytest.raises(InputError, match="has no conditions/:"):
        locate(tmp_path)
    (tmp_path / "conditions").mkdir()
    with pytest.raises(InputError, match=r"latents holds no .pt file"):
        survey(tmp_path)
