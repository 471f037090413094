"""Whatever is wrong, one rank says so in one message that names it, and every process ends within seconds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import yaml

from shards.dataset.info import INFO_NAME, write_info
from shards.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from shards.dataset.opened import Dataset
from tests.support.bench import Bench, assert_refused
from tests.support.damage import flip, shard_of
from tests.support.datasets import write_dataset
from tests.support.forked import launch, train
from tests.support.runs import ROOT, environment, lora_blocks

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path, paired_dataset: Dataset) -> Bench:
    return Bench(tmp_path, model_folder, paired_dataset)


HUB = {"model": {"model_source": "nobody/nothing"}}
CONFIGS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"optimization": {"learning_rat": 1.0}},
        ["config.yaml:", "optimization.learning_rat", "learning_rate?"],
    ),
    ({"optimisation": {"steps": 1}}, ["config.yaml:", "optimisation", "did you mean optimization?"]),
    ({"optimization": {"steps": 0}}, ["config.yaml:", "optimization.steps = 0", "greater than 0"]),
    ({"optimization": {"steps": True}}, ["optimization.steps = True", "number"]),
    ({"deepspeed": {"stage": 4}}, ["deepspeed.stage = 4", "0, 1, 2 or 3"]),
    ({"deepspeed": {"stage": 1, "offload_param": "cpu"}}, ["deepspeed.offload_param = 'cpu'", "stage 3"]),
    (
        {"deepspeed": {"config": {"fp16": {"enabled": True}}}},
        ["deepspeed.config.fp16", "mixed_precision_mode"],
    ),
    # What is here is looked at before a hub is asked.
    (
        {**HUB, "deepspeed": {"config": {"zero_optimization": {"wrong": 1}}}},
        ["deepspeed.config", "wrong = 1"],
    ),
    (
        {"deepspeed": {"config": {"zero_optimization": {"overlap_comm": "maybe"}}}},
        ["deepspeed.config", "overlap_comm = 'maybe'", "boolean"],
    ),
    (
        {"model": {"load_checkpoint": "/no/where"}},
        ["model.load_checkpoint", "/no/where: no such file or folder"],
    ),
    ({"model": {"training_mode": "lora"}}, ["lora", "required when model.training_mode is lora"]),
    ({"conditioning": {"mode": "reference_video"}}, ["problems in"]),
    ({**lora_blocks(), "conditioning": {"mode": "reference_video"}}, ["validation.reference_videos"]),
    ({"data": {"preprocessed_data_root": ""}}, ["data.preprocessed_data_root", "ltx-shards encode"]),
    (
        {"model": {"model_source": "LTXV_2B_0.9.55"}},
        ["model.model_source = 'LTXV_2B_0.9.55'", "LTXV_2B_0.9.5?"],
    ),
    ({"model": {"model_source": "/no/such"}}, ["model.model_source: /no/such: no such folder"]),
    (HUB, ["nobody/nothing: no such local folder, and transformer/config.json cannot be had"]),
    ({"data": {"preprocessed_data_root": "/no/such"}}, ["dataset folder /no/such does not exist"]),
    (
        {"batching": {"max_tokens_per_pack": 20}},
        ["more tokens than a pack may hold (the cap, 20)", "clips/sample_00001 (24 tokens)", "at least 24"],
    ),
    (
        {"validation": {"prompts": ["a"], "interval": 5, "video_dims": [100, 64, 9]}},
        ["validation.video_dims: [100, 64, 9] does not fit the model", "the nearest is [96, 64, 9]"],
    ),
    (
        {
            "validation": {
                "prompts": ["a"],
                "interval": 5,
                "video_dims": [96, 64, 9],
                "images": ["/no/such.png"],
            }
        },
        ["validation.images.0: /no/such.png: No such file or directory"],
    ),
    (
        {**lora_blocks(), "lora": {"rank": 4, "target_modules": ["to_q", "to_nothing"]}},
        ["lora.target_modules: 'to_nothing' names no linear layer"],
    ),
]
"""One wrong thing in the config, and what the message must name."""


@pytest.mark.parametrize(("blocks", "named"), CONFIGS, ids=[named[-1] for _, named in CONFIGS])
def test_a_wrong_setting_is_named(bench: Bench, blocks: dict[str, Any], named: list[str]) -> None:
    assert_refused(bench.run(blocks=blocks), *named)


def test_a_wrong_override_is_named(bench: Bench) -> None:
    ended = bench.run("optimization.steps=many", blocks={})
    assert_refused(ended, "command line: optimization.steps = 'many'")


def test_a_missing_config_is_named(bench: Bench) -> None:
    ended = launch(1, bench.root / "none.yaml", logs=bench.root / "logs")
    assert_refused(ended, "none.yaml: cannot read this config file")


@pytest.mark.parametrize(
    "command", [["dist_trainer", "run"], ["dist_trainer", "config"], ["dist_trainer.train"]]
)
def test_every_door_to_the_trainer_gives_the_same_message(bench: Bench, command: list[str]) -> None:
    if command == ["dist_trainer", "config"]:
        # The one door that opens without torch; the others pay its import once, in the forked parent.
        ended = subprocess.run(
            [sys.executable, "-m", *command, bench.config(seed=-1)],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        codes: list[int | None] = [ended.returncode]
        lines = ended.stderr.splitlines()
    else:
        module, *words = command
        one = launch(1, *words, bench.config(seed=-1), logs=bench.root / "logs", module=module)
        codes, lines = list(one.codes), one.stderr[0].splitlines()
    assert codes == [2]
    assert lines == [next(line for line in lines if line.startswith("error: ") and "seed = -1" in line)]


def _precomputed(bench: Bench) -> Path:
    root = bench.root / "data" / ".precomputed"
    for folder in ("latents", "conditions"):
        (root / folder).mkdir(parents=True)
    return root.parent


def _empty_folder(bench: Bench) -> Path:
    (bench.root / "data").mkdir()
    return bench.root / "data"


def _without(name: str) -> Callable[[Bench], Path]:
    def change(bench: Bench) -> Path:
        root = bench.copy_of_dataset()
        (root / name).unlink()
        return root

    return change


def _no_samples(bench: Bench) -> Path:
    root = bench.copy_of_dataset()
    write_manifest(root, Manifest.from_rows([]))
    return root


def _newer(bench: Bench) -> Path:
    root = bench.copy_of_dataset()
    write_info(root, replace(bench.dataset.info, version=99))
    return root


def _garbled(bench: Bench) -> Path:
    root = bench.copy_of_dataset()
    (root / MANIFEST_NAME).write_bytes(b"PAR1 and then nothing")
    return root


def _written(bench: Bench, **sizes: Any) -> Path:
    """A dataset that the model's own VAE is said to have encoded."""
    info = bench.dataset.info
    widths = {"channels": info.channels, "text_width": info.text_width}
    dataset = write_dataset(bench.root / "data", 6, **{**widths, **sizes})
    write_info(dataset.root, replace(dataset.info, vae=info.vae))
    return Path(dataset.root)


DATASETS: dict[str, tuple[Callable[[Bench], Path], list[str]]] = {
    "precomputed": (_precomputed, ["LTX-Video-Trainer", "ltx-shards import"]),
    "empty-folder": (_empty_folder, ["is not a dataset", "ltx-shards encode"]),
    "no-description": (_without(INFO_NAME), [f"{INFO_NAME} is missing", "--like"]),
    "no-manifest": (_without(MANIFEST_NAME), [MANIFEST_NAME, "ltx-shards index"]),
    "garbled-manifest": (_garbled, [MANIFEST_NAME]),
    "no-samples": (_no_samples, ["holds no samples"]),
    "newer-version": (_newer, ["version 99", "update"]),
    "other-channels": (partial(_written, channels=6), ["latents have 6 channels", "takes 8", "VAE"]),
    "other-text-width": (
        partial(_written, text_width=20),
        ["text embeddings are 20 wide", "takes 48", "text encoder"],
    ),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_does_not_fit_is_named(bench: Bench, name: str) -> None:
    change, named = DATASETS[name]
    root = change(bench)
    assert_refused(bench.run(blocks={"data": {"preprocessed_data_root": str(root)}}), root, *named)


def test_an_ic_lora_on_data_without_references_names_samples(bench: Bench) -> None:
    root = _written(bench, references=[(1, 4, 4), None, (3, 2, 4)])
    ended = bench.run(blocks={**lora_blocks(reference=True), "data": {"preprocessed_data_root": str(root)}})
    assert_refused(ended, "2 of 6 samples have no reference", "clips/sample_00001", "reference_path")


def test_a_held_out_dataset_is_looked_at_before_the_model_is_loaded(bench: Bench) -> None:
    info = replace(bench.dataset.info, channels=6)
    other = write_dataset(bench.root / "other", 4, channels=6, text_width=info.text_width, seed=1, info=info)
    model = {"model_source": str(_no_weights(bench))}
    ended = bench.run(blocks={"model": model, "validation": {"holdout_data": str(other.root)}})
    assert_refused(ended, f"validation.holdout_data: {other.root}: latents have 6 channels")


def _shrunk(bench: Bench) -> Path:
    """A model whose config.json promises another width than its weights have."""
    model = bench.copy_of_model()
    file = model / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_layers": 1}))
    return model


def _other_family(bench: Bench) -> Path:
    model = bench.copy_of_model()
    file = model / "transformer" / "config.json"
    file.write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    return model


def _no_transformer(bench: Bench) -> Path:
    model = bench.copy_of_model()
    shutil.rmtree(model / "transformer")
    return model


def _no_weights(bench: Bench) -> Path:
    model = bench.copy_of_model()
    next((model / "transformer").glob("*.safetensors")).unlink()
    return model


def _cut_weights(bench: Bench) -> Path:
    model = bench.copy_of_model()
    file = next((model / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    return model


def _no_json(bench: Bench) -> Path:
    model = bench.copy_of_model()
    (model / "transformer" / "config.json").write_text("{")
    return model


MODELS: dict[str, tuple[Callable[[Bench], Path], list[str]]] = {
    "no-transformer": (_no_transformer, ["folder has no transformer/"]),
    "no-weights": (_no_weights, ["no diffusion_pytorch_model.safetensors"]),
    "cut-weights": (_cut_weights, ["diffusion_pytorch_model.safetensors"]),
    "other-sizes": (_shrunk, ["weights do not fit config.json", "transformer_blocks.1."]),
    "other-family": (_other_family, ["'FluxTransformer2DModel'", "LTXVideoTransformer3DModel"]),
    "no-json": (_no_json, ["config.json"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_that_is_no_such_model_is_named(bench: Bench, name: str) -> None:
    change, named = MODELS[name]
    model = change(bench)
    assert_refused(bench.run(blocks={"model": {"model_source": str(model)}}), "model.model_source", *named)


def test_a_folder_of_another_run_is_refused_by_what_differs(bench: Bench) -> None:
    train(1, bench.config(optimization={"steps": 1}), logs=bench.root / "first")
    ended = bench.run(blocks={"seed": 7, "batching": {"samples_per_step": 5}})
    assert_refused(ended, bench.output, "seed: was 42, now 7", "samples_per_step: was 7, now 5", "output_dir")
    ended = bench.run(blocks=lora_blocks())
    assert_refused(ended, "training_mode: was 'full', now 'lora'")
    (bench.output / "state.json").write_text("{}")
    assert_refused(bench.run(blocks={}), "state.json", "not a run's state")


def test_a_checkpoint_of_other_adapters_is_refused(bench: Bench) -> None:
    blocks = {**lora_blocks(), "optimization": {"steps": 1}}
    train(1, bench.config(**blocks), logs=bench.root / "first")
    ended = bench.run(blocks={**blocks, "lora": {"rank": 8, "alpha": 8}, "optimization": {"steps": 2}})
    assert_refused(ended, "step_000001", "other parameters")


def test_an_output_folder_that_is_a_file_is_named(bench: Bench) -> None:
    bench.output.write_text("")
    assert_refused(bench.run(blocks={}), "output_dir", bench.output)


def _cut(root: Path, row: int) -> str:
    """The shard ends 50 bytes into the sample, which is the last of its shard: all others are whole."""
    manifest, shard = read_manifest(root), shard_of(root, row)
    shard.write_bytes(shard.read_bytes()[: int(manifest.offset[row]) + 50])
    return f"bytes before the end of the file: expected {manifest.nbytes[row]}, found 50"


def _flip(root: Path, row: int) -> str:
    manifest, shard = read_manifest(root), shard_of(root, row)
    flip(root, row)
    begin = int(manifest.offset[row])
    now = xxhash.xxh3_64_hexdigest(shard.read_bytes()[begin : begin + int(manifest.nbytes[row])])
    return f"xxh3_64 checksum: expected {manifest.checksum[row]:016x}, found {now}"


@pytest.mark.parametrize("damage", [_cut, _flip])
def test_damaged_bytes_are_named(bench: Bench, damage: Callable[[Path, int], str]) -> None:
    root, manifest = bench.copy_of_dataset(), bench.dataset.manifest
    row = int(np.argmax(manifest.offset))
    shard, key, wrong = manifest.shards[manifest.shard[row]], manifest.keys[row], damage(root, row)
    ended = bench.run(blocks={"data": {"preprocessed_data_root": str(root), "max_damaged_samples": 0}})
    assert_refused(ended)
    told = [line for line in ended.stderr[0].splitlines() if line.startswith("damaged")]
    assert told == [
        f"damaged, rank 0: {root}/{shard}: sample {key!r}: {wrong}; run `ltx-shards doctor {root}`"
    ]
    step = re.search(r"with step (\d+) ", ended.errors[0])
    assert step
    assert ended.errors == [
        f"error: data.max_damaged_samples: 0: with step {step[1]} the run has met 1 damaged samples ({key}); "
        f"`ltx-shards doctor {root}` says whether the shards are damaged or the manifest is of other ones: put them "
        f"back from a copy and start again, or run `ltx-shards doctor {root} --repair` and train what is left in "
        "another output_dir, or raise the limit"
    ]


def test_the_manifest_of_another_dataset_is_told_from_a_damaged_sample(bench: Bench) -> None:
    """Nothing that is read is as its manifest says: the run stops at once, with the command that tells why."""
    root, info = bench.copy_of_dataset(), bench.dataset.info
    keys = [str(key) for key in bench.dataset.manifest.keys]
    other = write_dataset(
        bench.root / "other", len(keys), channels=info.channels, text_width=info.text_width, keys=keys, seed=9
    )
    shutil.copy(Path(other.root) / MANIFEST_NAME, root / MANIFEST_NAME)
    ended = bench.run(blocks={"data": {"preprocessed_data_root": str(root)}})
    assert_refused(ended, code=1)
    assert re.fullmatch(
        r"error: shards/\d+.tar: sample 'clips/sample_\d+': .+ differs \(.+\), and of the samples to train in its "
        r"place: expected a sound one, found damage in all 8 tried \(clips/sample_\d+(, clips/sample_\d+){7}\); "
        rf"`ltx-shards doctor {re.escape(str(root))}` says whether the shards are damaged or the manifest is of "
        "other ones",
        ended.errors[0],
    ), str(ended)


def test_a_missing_shard_is_named(bench: Bench) -> None:
    root = bench.copy_of_dataset()
    for shard in (root / "shards").iterdir():
        shard.unlink()
    ended = bench.run(blocks={"data": {"preprocessed_data_root": str(root)}})
    assert_refused(ended, "shards/", "No such file", code=1)


def test_what_is_not_wrong_still_trains(bench: Bench) -> None:
    """Everything above would also pass if nothing ran at all."""
    ended = bench.run(size=2, blocks={"optimization": {"steps": 1}})
    assert ended.codes == [0, 0], str(ended)
    assert np.isfinite(json.loads((bench.output / "metrics.jsonl").read_text())["train/loss"])
    assert yaml.safe_load((bench.output / "config.yaml").read_text())["optimization"]["steps"] == 1
