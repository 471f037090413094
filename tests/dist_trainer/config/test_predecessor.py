"""YAML written for LTX-Video-Trainer loads here as it is, with the same meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dist_trainer.config import load
from shards.errors import InputError
from shards.source import VERSIONS

EVERY_KEY = """
# an IC-LoRA file in the predecessor's style, with every key that its files use
model:
  model_source: "{source}"
  training_mode: "lora"
  load_checkpoint: null
lora:
  rank: 96
  alpha: 48
  dropout: 0.0
  target_modules:
    - "to_k"
    - "to_q"
    - "to_v"
    - "to_out.0"
    - "ff.net.0.proj"
    - "ff.net.2"
conditioning:
  mode: "reference_video"
  first_frame_conditioning_p: 0.3
  reference_latents_dir: "reference_latents"
optimization:
  learning_rate: 3e-4
  steps: 1234
  batch_size: 1
  gradient_accumulation_steps: 4
  max_grad_norm: 1.0
  optimizer_type: "adamw8bit"
  scheduler_type: "linear"
  scheduler_params: {{}}
  enable_gradient_checkpointing: true
acceleration:
  mixed_precision_mode: "bf16"
  quantization: "fp8-quanto"
  load_text_encoder_in_8bit: true
  compile_with_inductor: false
  compilation_mode: "reduce-overhead"
data:
  preprocessed_data_root: "/somewhere/.precomputed"
  num_dataloader_workers: 2
validation:
  prompts:
    - "first"
    - "second"
  reference_videos:
    - "/somewhere/a.mp4"
    - "/somewhere/b.mp4"
  images: null
  negative_prompt: "worst quality"
  video_dims: [512, 512, 81]
  seed: 42
  inference_steps: 50
  interval: 250
  videos_per_prompt: 1
  guidance_scale: 3.5
  skip_initial_validation: true
checkpoints:
  interval: 250
  keep_last_n: -1
flow_matching:
  timestep_sampling_mode: "shifted_logit_normal"
  timestep_sampling_params: {{}}
hub:
  push_to_hub: false
  hub_model_id: null
wandb:
  enabled: false
  project: "ltxv-trainer"
  entity: null
  tags: []
  log_validation_videos: true
seed: 42
output_dir: "{output}"
"""


@pytest.mark.parametrize("source", [*VERSIONS, "Lightricks/LTX-Video", "/local/folder"])
def test_a_file_with_every_key_loads(tmp_path: Path, source: str) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(EVERY_KEY.format(source=source, output="~/outputs/x"))
    config = load(path)
    assert config.model.model_source == source
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha, config.lora.target_modules[-1]) == (96, 48, "ff.net.2")
    assert config.conditioning.reference_latents_dir == "reference_latents"
    assert config.optimization.learning_rate == 3e-4
    assert config.validation.video_dims == (512, 512, 81)
    assert config.output_dir == Path.home() / "outputs/x"
    assert [config.samples_per_step(world) for world in (1, 2, 8)] == [4, 8, 32]


_OURS = {"frame_rate", "holdout", "holdout_data", "holdout_interval", "holdout_samples"}


def test_defaults_are_the_predecessors(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {preprocessed_data_root: d}\nlora: {}\n")
    config = load(path)
    assert config.lora is not None
    assert {
        "model.model_source": config.model.model_source,
        "model.training_mode": config.model.training_mode,
        "lora": (config.lora.rank, config.lora.alpha, config.lora.dropout, config.lora.target_modules),
        "conditioning": tuple(config.conditioning.model_dump().values()),
        "learning_rate": config.optimization.learning_rate,
        "steps": config.optimization.steps,
        "batch": (config.optimization.batch_size, config.optimization.gradient_accumulation_steps),
        "max_grad_norm": config.optimization.max_grad_norm,
        "types": (config.optimization.optimizer_type, config.optimization.scheduler_type),
        "gradient_checkpointing": config.optimization.enable_gradient_checkpointing,
        "acceleration": tuple(config.acceleration.model_dump().values()),
        "workers": config.data.num_dataloader_workers,
        "validation": tuple(v for k, v in config.validation.model_dump().items() if k not in _OURS),
        "checkpoints": tuple(config.checkpoints.model_dump(exclude={"export"}).values()),
        "flow_matching": tuple(config.flow_matching.model_dump().values()),
        "hub": tuple(config.hub.model_dump(exclude={"private"}).values()),
        "wandb": tuple(config.wandb.model_dump().values()),
        "seed": config.seed,
    } == {
        "model.model_source": "LTXV_13B_097_DEV",
        "model.training_mode": "lora",
        "lora": (64, 64, 0.0, ("to_k", "to_q", "to_v", "to_out.0")),
        "conditioning": ("none", 0.1, "ref_latents"),
        "learning_rate": 5e-4,
        "steps": 3000,
        "batch": (2, 1),
        "max_grad_norm": 1.0,
        "types": ("adamw", "linear"),
        "gradient_checkpointing": False,
        "acceleration": ("bf16", None, False, True, "reduce-overhead"),
        "workers": 2,
        "validation": (
            (),
            "worst quality, inconsistent motion, blurry, jittery, distorted",
            None,
            None,
            (704, 480, 161),
            42,
            50,
            100,
            1,
            3.5,
            False,
        ),
        "checkpoints": (None, 1),
        "flow_matching": ("shifted_logit_normal", {}),
        "hub": (False, None),
        "wandb": (False, "ltxv-trainer", None, (), True),
        "seed": 42,
    }


SAVED = """
lora:
  alpha: 64
  dropout: 0.0
  rank: 64
  target_modules: !!python/tuple
  - to_k
  - to_q
model:
  load_checkpoint: null
  model_source: !!python/object/apply:ltxv_trainer.model_loader.LtxvModelVersion
  - LTXV_2B_0.9.6_DEV
  training_mode: lora
data:
  preprocessed_data_root: d
validation:
  video_dims: !!python/tuple
  - 512
  - 512
  - 81
"""


def test_what_it_saves_beside_its_weights_loads(tmp_path: Path) -> None:
    """Its training_config.yaml has tags of Python's."""
    path = tmp_path / "training_config.yaml"
    path.write_text(SAVED)
    config = load(path)
    assert config.lora is not None
    assert config.lora.target_modules == ("to_k", "to_q")
    assert config.model.model_source == "LTXV_2B_0.9.6_DEV"
    assert config.validation.video_dims == (512, 512, 81)
    path.write_text(SAVED.replace("- LTXV_2B_0.9.6_DEV", "- LTXV_2B_0.9.6_DEV\n  - more"))
    with pytest.raises(InputError, match=r"training_config\.yaml:11: model\.model_source = .*valid string"):
        load(path)


@pytest.mark.parametrize("block", ["validation", "checkpoints", "hub", "wandb"])
def test_values_in_the_spellings_of_yaml_1_1_and_of_strings_are_taken(tmp_path: Path, block: str) -> None:
    written = {
        "validation": "interval: '250', seed: -1, skip_initial_validation: yes, guidance_scale: '3', images: null",
        "checkpoints": "interval: 1_000, keep_last_n: -1",
        "hub": "push_to_hub: on, hub_model_id: me/mine",
        "wandb": "enabled: off, entity: '', tags: [a, '1'], log_validation_videos: 'no'",
    }[block]
    meant = {
        "validation": (250, -1, True, 3.0, None),
        "checkpoints": (1000, -1),
        "hub": (True, "me/mine"),
        "wandb": (False, "", ("a", "1"), False),
    }[block]
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{preprocessed_data_root: d}}\nlora: {{}}\n{block}: {{{written}}}\n")
    found = getattr(load(path), block)
    assert tuple(getattr(found, key) for key in yaml.safe_load(f"{{{written}}}")) == meant


def test_early_files_set_the_first_frame_coin_under_optimization(tmp_path: Path) -> None:
    path = tmp_path / "early.yaml"
    path.write_text(
        "data: {preprocessed_data_root: d}\nlora: {}\noptimization: {first_frame_conditioning_p: 0.25}\n"
    )
    assert load(path).conditioning.first_frame_conditioning_p == 0.25
