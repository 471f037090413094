"""The model card: README.md with the header that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dist_trainer.config import RunConfig
from dist_trainer.version import __version__
from shards.source import SINGLE_FILES, VERSIONS, is_hub_id

_KINDS = {"lora": "A LoRA", "ic_lora": "An IC-LoRA", "full": "A fine-tuned transformer"}
_FPS = 25  # at which LTXPipeline samples unless told


class Shown(NamedTuple):
    """What the card shows: files by their path in the repository, and the prompt of each video where it is known."""

    curves: str | None = None
    videos: Sequence[tuple[str, str]] = ()


def kind_of(config: RunConfig) -> str:
    """`lora`, `ic_lora` or `full`."""
    if config.model.training_mode == "full":
        return "full"
    return "ic_lora" if config.conditioning.mode == "reference_video" else "lora"


def card(
    config: RunConfig,
    repository: str,
    step: int,
    facts: Mapping[str, str],
    shown: Shown,
    continued: bool = False,
) -> str:
    """The text of README.md: what the model is, how to use it in diffusers and ComfyUI, how it was trained.

    `continued`: the run started from other whole weights than those of its model_source.
    """
    kind, base = kind_of(config), "" if continued else _base(config.model.model_source)
    trigger = facts.get("trigger_word", "")
    name = repository.rpartition("/")[2]
    what = f"{_KINDS[kind]} of {base or 'LTX-Video'}, trained for {step} steps."
    parts = [f"# {name}", what]
    if trigger:
        parts.append(f"Begin prompts with `{trigger}`: every caption of the training data does.")
    if kind == "ic_lora":
        parts.append(_reference(facts))
    parts += ["## Use in diffusers", _diffusers(kind, repository, config, trigger, continued)]
    parts += ["## Use in ComfyUI", _comfyui(kind)]
    if shown.videos:
        parts.append("## Samples")
        parts += [f"{prompt}\n\n{_seen(file)}" for file, prompt in shown.videos]
    parts += ["## Training", _table(_settings(config, step, continued))]
    if shown.curves:
        parts.append(f"![loss and learning rate]({shown.curves})")
    parts.append(
        f"Trained with ltx-dist-trainer {__version__}; the headers of the weights hold the whole config."
    )
    head = yaml.safe_dump(_header(config, kind, base, trigger, shown), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def _header(config: RunConfig, kind: str, base: str, trigger: str, shown: Shown) -> dict[str, Any]:
    task = "video-to-video" if kind == "ic_lora" else "text-to-video"
    tags = ["ltx-video", task, *([kind.replace("_", "-")] if kind != "full" else []), "ltx-dist-trainer"]
    header: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": task, "tags": tags}
    if base:
        header |= {"base_model": base, "base_model_relation": "finetune" if kind == "full" else "adapter"}
    if trigger:
        header["instance_prompt"] = trigger
    if shown.videos:
        header["widget"] = [{"text": prompt, "output": {"url": file}} for file, prompt in shown.videos]
    return header


def _seen(file: str) -> str:
    return f"![sample]({file})" if file.endswith(".png") else f'<video controls src="{file}"></video>'


def _base(source: str) -> str:
    """The repository whose transformer was trained on; empty for a local one, and one released as a single file."""
    return "" if source in VERSIONS and VERSIONS[source][1] else _pipeline(source)


def _pipeline(source: str) -> str:
    """The repository whose other parts belong to a model; empty for a local one."""
    if source in VERSIONS:
        return VERSIONS[source][0]
    return source if is_hub_id(source) and not Path(source).expanduser().exists() else ""


def _reference(facts: Mapping[str, str]) -> str:
    factor = facts.get("reference_downscale_factor", "1")
    size = (
        "of the video's own size"
        if factor == "1"
        else f"{factor} times smaller than the video along each side"
    )
    return (
        "It is conditioned on a reference video: clean tokens of the reference go before those of the video, at the "
        f"video's coordinates. References are {size}."
    )


def _transformer(kind: str, repository: str, source: str, continued: bool) -> str:
    """The call that opens the transformer, where it is not the one of the base's pipeline."""
    if kind == "full":
        return f'from_pretrained("{repository}", subfolder="transformer", torch_dtype=torch.bfloat16)'
    if continued:
        return 'from_pretrained("path/to/the/weights/it/started/from", torch_dtype=torch.bfloat16)'
    single = VERSIONS[source][1] if source in VERSIONS else None
    if single:
        address = f"https://huggingface.co/{SINGLE_FILES}/blob/main/{single}"
        return (
            f'from_single_file("{address}", config=base, subfolder="transformer", torch_dtype=torch.bfloat16)'
        )
    return ""


def _diffusers(kind: str, repository: str, config: RunConfig, trigger: str, continued: bool) -> str:
    width, height, frames = config.validation.video_dims
    prompts = config.validation.prompts
    prompt = prompts[0] if prompts else f"{trigger} a video".strip()
    source = config.model.model_source
    opened = [f'base = "{_pipeline(source) or "path/to/the/base/model"}"']
    names, given = "LTXPipeline", ""
    if transformer := _transformer(kind, repository, source, continued):
        names, given = "LTXPipeline, LTXVideoTransformer3DModel", "transformer=transformer, "
        opened.append(f"transformer = LTXVideoTransformer3DModel.{transformer}")
    opened.append(f"pipeline = LTXPipeline.from_pretrained(base, {given}torch_dtype=torch.bfloat16)")
    if kind != "full":
        weights = 'weight_name="pytorch_lora_weights.safetensors"'
        opened.append(f'pipeline.load_lora_weights("{repository}", {weights})')
    lines = ["import torch", f"from diffusers import {names}"]
    lines += [] if kind == "ic_lora" else ["from diffusers.utils import export_to_video"]
    lines += ["", *opened, 'pipeline.to("cuda")']
    if kind == "ic_lora":
        note = "\n\nLTXPipeline samples without a reference; use ComfyUI, or a pipeline that takes reference videos."
    else:
        note = ""
        size = f"width={width}, height={height}, num_frames={frames}"
        lines += [f"frames = pipeline({prompt!r}, {size}).frames[0]"]
        lines += [f'export_to_video(frames, "video.mp4", fps={_FPS})']
    return "```python\n" + "\n".join(lines) + "\n```" + note


def _comfyui(kind: str) -> str:
    if kind == "full":
        return (
            "Put the file of `comfyui/` (or one made by `ltx-train export --format comfyui`) into "
            "`models/diffusion_models` and load it with the *Load Diffusion Model* node; VAE and text encoder are the "
            "base model's."
        )
    loaded = "Put the file of `comfyui/` into `models/loras` and load it with the *LoraLoaderModelOnly* node."
    return loaded + (" Give the reference by the nodes for IC-LoRA." if kind == "ic_lora" else "")


def _settings(config: RunConfig, step: int, continued: bool) -> dict[str, Any]:
    optimization, lora = config.optimization, config.lora
    source = config.model.model_source
    named = _base(source) or Path(source).name
    found: dict[str, Any] = {"base model": f"{named}, trained before" if continued else named}
    found["steps"] = step
    if lora and config.model.training_mode == "lora":
        found |= {"rank": lora.rank, "alpha": lora.alpha, "target modules": ", ".join(lora.target_modules)}
    found |= {
        "learning rate": f"{optimization.learning_rate:g}, {optimization.scheduler_type}",
        "optimizer": optimization.optimizer_type,
        "first frame given": f"{config.conditioning.first_frame_conditioning_p:.0%} of the samples",
        "noise levels": config.flow_matching.timestep_sampling_mode,
        "computed in": config.acceleration.precision,
        "seed": config.seed,
    }
    return found


def _table(settings: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {value} |" for key, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])
