from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from shards.cli import app
from shards.errors import InputError
from shards.prepare.caption.captioner import MANY_PICTURES, CaptionError, LocalCaptioner, chat_content
from shards.prepare.caption.listing import EXTENSIONS
from shards.prepare.caption.options import CaptionOptions
from shards.prepare.caption.sampling import Frames
from tests.support.clips import PALETTE, ramp
from tests.support.models import tiny_model
from tests.support.vlm import KINDS, tiny_vlm

CPU = torch.device("cpu")
TORCHVISION = importlib.util.find_spec("torchvision") is not None


def clip(colour: int, frames: int = 4, width: int = 84, height: int = 56) -> Frames:
    return Frames(ramp(frames, width, height, PALETTE[colour]), 3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_several_families_caption_videos_and_pictures(kind: str) -> None:
    clips = [clip(0, 1), clip(0, 5), clip(1, 5), clip(2, 5)]
    runs = []
    for _ in range(2):
        model = LocalCaptioner(str(tiny_vlm(kind)), device=CPU, max_new_tokens=12)
        runs.append([model.caption(each) for each in clips])
    assert runs[0] == runs[1], "the same on every run"
    assert len(set(runs[0])) > 2, "the answer depends on what is seen"
    assert all(5 <= len(answer.split()) <= 12 for answer in runs[0])
    assert not any("<" in answer for answer in runs[0]), "no special tokens, and not the question"


def test_without_torchvision_a_video_model_looks_at_pictures() -> None:
    model = LocalCaptioner(str(tiny_vlm("qwen2_5_vl")), device=CPU, max_new_tokens=5)
    assert model.sees == ("video" if TORCHVISION else "pictures")
    assert LocalCaptioner(str(tiny_vlm("llava")), device=CPU, max_new_tokens=5).sees == "pictures"


@pytest.mark.skipif(not TORCHVISION, reason="transformers' video processors need torchvision")
def test_with_torchvision_a_video_is_half_the_tokens_of_its_pictures() -> None:
    model = LocalCaptioner(str(tiny_vlm("qwen2_5_vl")), device=CPU, max_new_tokens=5)
    video = model._inputs(clip(0, frames=4))
    assert (
        video["pixel_values_videos"].shape[0] == 2 * model._inputs(clip(0, frames=1))["pixel_values"].shape[0]
    )
    assert model.caption(clip(0, frames=4)) == model.caption(clip(0, frames=4))


def test_the_frames_of_a_video_and_their_times_go_to_the_model() -> None:
    video, settings = chat_content(clip(0), "What?", "video")
    assert [part["type"] for part in video] == ["video", "text"]
    assert video[0]["video"].shape == (4, 56, 84, 3)
    (metadata,) = settings["video_metadata"]
    assert (metadata.fps, metadata.duration, metadata.timestamps) == (3.0, 4 / 3, [0, 1 / 3, 2 / 3, 1])
    assert settings["do_sample_frames"] is False
    pictures, settings = chat_content(clip(0), "What?", "pictures")
    assert [part["type"] for part in pictures] == ["image"] * 4 + ["text"]
    assert pictures[-1]["text"] == f"{MANY_PICTURES} What?"
    assert np.array_equal(np.asarray(pictures[2]["image"]), clip(0).pixels[2])
    picture, _ = chat_content(clip(0, frames=1), "What?", "video")
    assert [part["type"] for part in picture] == ["image", "text"]
    assert picture[-1]["text"] == "What?"
    assert settings == {}


def test_the_instruction_and_the_length_reach_the_model() -> None:
    folder = str(tiny_vlm())
    short, long, other = (
        LocalCaptioner(folder, device=CPU, max_new_tokens=length, instruction=text).caption(clip(0))
        for length, text in ((6, "a cat"), (12, "a cat"), (12, "the red bird sleeps in the car"))
    )
    assert len(short.split()) == 6
    assert long.startswith(short)
    assert other != long


def test_a_clip_that_the_model_refuses_is_an_error_of_that_clip() -> None:
    model = LocalCaptioner(str(tiny_vlm("qwen2_5_vl")), device=CPU, max_new_tokens=5)
    with pytest.raises(
        CaptionError, match="ValueError: absolute aspect ratio must be smaller than 200"
    ) as error:
        model.caption(clip(0, frames=1, width=1000, height=2))
    assert not error.value.gone
    assert model.caption(clip(0))


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
    ],
)
def test_a_gpu_that_is_out_of_order_is_gone(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model = LocalCaptioner(str(tiny_vlm()), device=CPU, max_new_tokens=5)

    def generate(**_: object) -> None:
        raise error

    monkeypatch.setattr(model._model, "generate", generate)
    with pytest.raises(CaptionError, match=f"{type(error).__name__}: CUDA error: ") as raised:
        model.caption(clip(0))
    assert raised.value.gone
    assert model.most_gone == 1


def broken(tmp_path: Path, damage: str) -> str:
    folder = tmp_path / "model"
    shutil.copytree(tiny_vlm("llava"), folder)
    if damage == "no chat template":
        (folder / "chat_template.jinja").unlink()
    elif damage == "cut weights":
        (folder / "model.safetensors").write_bytes(b"0" * 100)
    elif damage == "unknown kind":
        (folder / "config.json").write_text(json.dumps({"model_type": "nobody_knows"}))
    return str(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "no chat template",
            "this processor cannot be used: ValueError: it has no chat template; give a model",
        ),
        ("cut weights", "this model cannot be used: SafetensorError: "),
        ("unknown kind", "this "),  # processor or model, whichever is asked first
    ],
)
def test_a_model_that_cannot_be_used_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    model = broken(tmp_path, damage)
    with pytest.raises(InputError) as error:
        LocalCaptioner(model, device=CPU)
    assert str(error.value).startswith(f"--model {model}: {message}")
    assert "\n" not in str(error.value)


def test_what_is_not_a_chat_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^--model /nowhere: no such folder. Give the folder of a model, or a hub id.$"
    ):
        LocalCaptioner("/nowhere", device=CPU)
    with pytest.raises(InputError, match=r"^--model .*: this processor cannot be used: "):
        LocalCaptioner(str(tiny_model()), device=CPU)


@pytest.mark.parametrize("cached", [False, True])
def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """With a model in the cache that is used, without one is a line at once."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    if cached:
        repository = cache / "models--owner--sees"
        shutil.copytree(tiny_vlm("llava"), repository / "snapshots" / "abc")
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("abc")
        model = LocalCaptioner("owner/sees", device=CPU, max_new_tokens=5)
        assert (model.name, bool(model.caption(clip(0)))) == ("owner/sees", True)
        return
    with pytest.raises(
        InputError,
        match=r"^--model owner/sees: it is not in the local cache and cannot be downloaded \(.+\): give a folder by "
        r"--model, or a server by --endpoint$",
    ):
        LocalCaptioner("owner/sees", device=CPU)


@pytest.mark.skipif(bool(importlib.util.find_spec("bitsandbytes")), reason="bitsandbytes is here")
def test_8_bits_say_what_they_need() -> None:
    with pytest.raises(InputError) as error:
        LocalCaptioner(str(tiny_vlm()), device=CPU, use_8bit=True)
    assert str(error.value) == "--use-8bit needs the package bitsandbytes: pip install bitsandbytes"


def test_the_command_has_the_defaults_of_the_code() -> None:
    command = typer.main.get_command(app).commands["caption"]  # type: ignore[attr-defined]
    defaults = {parameter.name: parameter.default for parameter in command.params}
    for name, value in asdict(CaptionOptions()).items():
        flag = {"clean": "clean_caption", "video_to_server": "endpoint_video"}.get(name, name)
        if name != "at_server":
            assert defaults[flag] == value, name
    assert not any(parameter.hidden for parameter in command.params)
    assert defaults["extensions"] == ",".join(EXTENSIONS)
