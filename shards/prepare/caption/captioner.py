"""A vision-language model of transformers that captions clips on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from shards.errors import InputError
from shards.prepare.caption.processor import load_processor, takes_video
from shards.prepare.caption.sampling import Frames

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
DEFAULT_INSTRUCTION = "Shortly describe the content of this video in two sentences."
_HUB_S = 10.0  # for the hub to answer
MANY_PICTURES = "The pictures are frames of one video, in order."

T = TypeVar("T")


class CaptionError(Exception):
    """A model or server gave no caption for a clip: the `reason` in a few words.

    `gone`: it says nothing about the clip, since the server or the GPU was not able to work.
    """

    def __init__(self, reason: str, gone: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.gone = gone


class Captioner(Protocol):
    """What a pass over a table needs of a model."""

    name: str  # of the model
    label: str  # what messages call it
    sees: str  # "video", or "pictures": the frames of a clip, one by one
    at_once: int  # clips that it captions at a time, from as many threads
    most_gone: int  # clips in a row for which it may be `gone` before it is given up

    def caption(self, clip: Frames) -> str:
        """The answer as the model gave it. Raises CaptionError."""


class LocalCaptioner:
    """A chat model with eyes, by hub id or folder, on `device`: bfloat16, and float32 on a CPU. Greedy.

    A clip goes in as a video where the processor and its chat template take one, which needs torchvision with
    most models; otherwise as pictures. Raises InputError for a model that cannot be used.
    """

    at_once = 1
    most_gone = 1  # a GPU that failed does so until its process ends

    def __init__(
        self,
        model: str,
        *,
        device: torch.device,
        instruction: str = DEFAULT_INSTRUCTION,
        max_new_tokens: int = 200,
        use_8bit: bool = False,
    ) -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()
        check_model(model)
        self.name = model
        self.label = f"--model {model}"
        self._device = device
        self._instruction = instruction
        self._max_new_tokens = max_new_tokens
        source = _at_hand(model)
        self._processor = _usable(model, "processor", lambda: load_processor(source))
        self.sees = "video" if takes_video(self._processor) else "pictures"
        self._model = _usable(model, "model", lambda: _load_model(source, device, use_8bit))

    def caption(self, clip: Frames) -> str:
        """The model's answer on a clip."""
        import torch

        try:
            inputs = self._inputs(clip)
            with torch.inference_mode():
                tokens = self._model.generate(
                    **inputs,
                    max_new_tokens=self._max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    # Those of the model's own generation config, which only sampling uses.
                    temperature=None,
                    top_p=None,
                    top_k=None,
                )
            answer = tokens[0, inputs["input_ids"].shape[1] :]
            return str(self._processor.tokenizer.decode(answer, skip_special_tokens=True))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise CaptionError(
                f"not enough GPU memory for its {len(clip.pixels)} frames: "
                "lower --max-frames or --frame-pixels, or use --use-8bit"
            ) from error
        except Exception as error:
            # Whatever a model does with one clip, the others get their turn, unless the GPU is out of order.
            gone = isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
            raise CaptionError(f"{type(error).__name__}: {_first_line(error)}", gone) from error

    def _inputs(self, clip: Frames) -> dict[str, Any]:
        """What the model's `generate` takes, on its device."""
        content, settings = chat_content(clip, self._instruction, self.sees)
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=settings,
        )
        moved = {name: value.to(self._device) for name, value in inputs.items()}
        # Pixels only: times, which are floats too, would lose digits.
        return {
            name: value.to(self._model.dtype) if name.startswith("pixel_values") else value
            for name, value in moved.items()
        }


def chat_content(clip: Frames, instruction: str, sees: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The message about a clip in the form of a chat template, and what the processor must know beside it."""
    from PIL import Image
    from transformers.video_utils import VideoMetadata

    text = {"type": "text", "text": instruction}
    if sees == "video" and len(clip.pixels) > 1:
        count, height, width = clip.pixels.shape[:3]
        metadata = VideoMetadata(
            total_num_frames=count,
            fps=clip.fps,
            width=width,
            height=height,
            duration=count / clip.fps,
            frames_indices=list(range(count)),
        )
        settings = {"video_metadata": [metadata], "do_sample_frames": False}
        return [{"type": "video", "video": clip.pixels}, text], settings
    pictures = [{"type": "image", "image": Image.fromarray(frame)} for frame in clip.pixels]
    if len(pictures) > 1:
        text = {"type": "text", "text": f"{MANY_PICTURES} {instruction}"}
    return [*pictures, text], {}


def check_model(model: str) -> None:
    """Raise InputError for a name that can only be a folder's, where there is none."""
    is_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if is_path and not Path(model).is_dir():
        raise InputError(f"--model {model}: no such folder. Give the folder of a model, or a hub id.")


def _at_hand(model: str) -> str:
    """The model, or its folder in the hub's local cache where the hub does not answer. Raises InputError.

    One short question, since transformers asks again and again for each file of a model.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if Path(model).is_dir():
        return model
    try:
        HfApi().model_info(model, timeout=_HUB_S)
    except Exception as error:  # of the hub's library, and of the one under it
        config = try_to_load_from_cache(model, "config.json")
        if isinstance(config, str):
            return str(Path(config).parent)
        raise InputError(
            f"--model {model}: it is not in the local cache and cannot be downloaded ({_first_line(error)}): give a "
            "folder by --model, or a server by --endpoint"
        ) from error
    return model


def _load_model(model: str, device: torch.device, use_8bit: bool) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    settings: dict[str, Any] = {"dtype": torch.float32 if device.type == "cpu" else torch.bfloat16}
    if device.type != "cpu" or use_8bit:
        settings["device_map"] = {"": device}  # straight there, not through this machine's memory
    if use_8bit:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError("--use-8bit needs the package bitsandbytes: pip install bitsandbytes")
        settings["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForImageTextToText.from_pretrained(model, **settings).eval()


def _usable(model: str, what: str, load: Callable[[], T]) -> T:
    """What `load` gives. Raises InputError naming the model for whatever else."""
    try:
        return load()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"--model {model}: this {what} cannot be used: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
