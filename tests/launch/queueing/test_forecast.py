"""What a run will be is told before it is queued, and what the trainer would refuse is refused in its words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config import load
from launch.queueing.forecast import Forecast, forecast
from shards.dataset.info import write_info
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.dist_trainer.test_bad_input import CONFIGS, DATASETS, MODELS
from tests.support.bench import Bench
from tests.support.datasets import write_dataset
from tests.support.disks import remount, small_disk
from tests.support.forked import train
from tests.support.runs import ROOT, environment, lora_blocks, write_config

LATER = "other-sizes"
"""What the trainer alone finds: it builds the model, which takes torch."""


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path, paired_dataset: Dataset) -> Bench:
    return Bench(tmp_path, model_folder, paired_dataset)


def told(bench: Bench, *overrides: str, ranks: int = 2, **blocks: Any) -> Forecast:
    return forecast(load(bench.config(**blocks), overrides), ranks)


def refused(bench: Bench, *named: str | Path, ranks: int = 2, **blocks: Any) -> None:
    with pytest.raises(InputError) as caught:
        told(bench, ranks=ranks, **blocks)
    assert [str(part) for part in named if str(part) not in str(caught.value)] == []


def test_a_run_is_told_in_numbers(bench: Bench) -> None:
    found = told(
        bench, optimization={"steps": 60}, batching={"samples_per_step": 6, "max_tokens_per_pack": 40}
    )
    assert (found.ranks, found.samples, found.steps, found.cap) == (2, 30, 60, 40)
    assert (found.samples_per_step, found.epochs) == (6.0, 12.0)
    assert found.tokens_per_step == bench.dataset.manifest.target_tokens().sum() / 5
    assert "60 steps, 12.00 epochs of 30 samples" in str(found)
    assert f"{found.packing.useful:.1%} of their time is useful" in str(found)


def test_ranks_that_a_step_cannot_keep_busy_are_said_with_the_way_out(bench: Bench) -> None:
    assert not [note for note in told(bench, ranks=1).notes if "batching.mix" in note]
    many = told(bench, ranks=16)
    assert many.packing.idle > 0.5
    assert any("batching.mix 'random'" in note and "larger steps" in note for note in many.notes)


def test_a_step_that_the_config_leaves_open_grows_with_the_ranks_until_the_run_has_begun(
    bench: Bench,
) -> None:
    open_sized = {"batching": {"samples_per_step": None}, "optimization": {"steps": 1, "batch_size": 3}}
    assert told(bench, ranks=4, **open_sized).samples_per_step == 12
    train(1, bench.config(**open_sized), logs=bench.root / "logs")
    assert told(bench, ranks=4, **open_sized).samples_per_step == 3


def test_settings_that_are_not_acted_on_are_noted(bench: Bench) -> None:
    notes = told(bench, acceleration={"compile_with_inductor": True}).notes
    assert any("acceleration.compile_with_inductor" in note for note in notes)


@pytest.mark.parametrize(("blocks", "named"), CONFIGS, ids=[named[-1] for _, named in CONFIGS])
def test_a_setting_that_the_trainer_refuses_is_refused(
    bench: Bench, blocks: dict[str, Any], named: list[str]
) -> None:
    refused(bench, *named, **blocks)


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_the_trainer_refuses_is_refused(bench: Bench, name: str) -> None:
    change, named = DATASETS[name]
    root = change(bench)
    refused(bench, root, *named, data={"preprocessed_data_root": str(root)})


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {LATER}))
def test_a_model_that_the_trainer_refuses_is_refused(bench: Bench, name: str) -> None:
    change, named = MODELS[name]
    refused(bench, "model.model_source", *named, model={"model_source": str(change(bench))})


def test_samples_without_references_are_refused_for_ic_lora(bench: Bench) -> None:
    info = bench.dataset.info
    written = write_dataset(bench.root / "data", 6, channels=info.channels, text_width=info.text_width)
    write_info(written.root, replace(written.info, vae=info.vae))
    blocks = {**lora_blocks(reference=True), "data": {"preprocessed_data_root": str(written.root)}}
    refused(bench, "6 of 6 samples have no reference", "reference_path", **blocks)


def test_a_dataset_of_another_vae_is_refused(bench: Bench) -> None:
    root = bench.copy_of_dataset()
    info = json.loads((root / "dataset.json").read_text())
    info["vae"] = {**info["vae"], "source": "another", "fingerprint": "0" * 16}
    (root / "dataset.json").write_text(json.dumps(info))
    blocks = {"data": {"preprocessed_data_root": str(root)}}
    refused(bench, root, f"latents were encoded by the VAE {'0' * 16} (of another)", bench.model, **blocks)


def test_what_is_held_out_is_told_with_its_cost(bench: Bench) -> None:
    plain, found = told(bench), told(bench, validation={"holdout": 0.3, "holdout_interval": 2})
    assert plain.held_out is None
    assert found.held_out is not None
    assert found.samples + found.held_out.held_out == plain.samples
    assert f"{found.held_out}\n" in str(found)
    assert any("holdout_interval" in note for note in found.notes)


def test_a_held_out_dataset_that_does_not_fit_is_refused(bench: Bench) -> None:
    info = replace(bench.dataset.info, channels=6)
    sizes = {"channels": 6, "text_width": info.text_width, "seed": 1}
    other = write_dataset(bench.root / "other", 4, info=info, **sizes)
    validation = {"holdout_data": str(other.root)}
    refused(bench, f"validation.holdout_data: {other.root}: latents have 6 channels", validation=validation)
    # Whose latents they are is told by its own description where the training data does not say.
    write_info(other.root, replace(info, vae=replace(info.vae, source="another", fingerprint="0" * 16)))
    root = bench.copy_of_dataset()
    write_info(root, replace(bench.dataset.info, vae=replace(info.vae, fingerprint="")))
    blocks = {"data": {"preprocessed_data_root": str(root)}, "validation": validation}
    refused(bench, other.root, f"latents were encoded by the VAE {'0' * 16} (of another)", **blocks)


def test_a_folder_of_another_run_is_refused_by_what_differs(bench: Bench) -> None:
    train(1, bench.config(optimization={"steps": 1}), logs=bench.root / "first")
    refused(bench, bench.output, "seed: was 42, now 7", "output_dir", seed=7)
    assert not [note for note in told(bench).notes if "steps are done" in note]
    assert told(bench, optimization={"steps": 1}).notes[0].startswith("all 1 steps are done")


def test_a_stop_file_is_refused_with_the_command_that_goes_on(bench: Bench) -> None:
    bench.output.mkdir()
    (bench.output / "STOP").touch()
    refused(bench, bench.output / "STOP", f"ltx-launch resume {bench.output}")


def test_a_folder_that_cannot_be_written_is_refused(bench: Bench) -> None:
    (bench.root / "file").touch()
    refused(bench, f"output_dir: {bench.root}/file: is a file", output_dir=str(bench.root / "file"))
    below = str(bench.root / "file" / "run")
    refused(bench, f"output_dir: {below}: cannot be written", output_dir=below)
    with small_disk(bench.root / "disk", "64k") as disk:
        remount(disk, "ro")
        refused(bench, "cannot be written", f"no permission to write in {disk}", output_dir=f"{disk}/a/run")


def test_no_ranks_are_refused(bench: Bench) -> None:
    refused(bench, "0 ranks", ranks=0)


def test_nothing_is_written(bench: Bench) -> None:
    told(bench)
    assert not bench.output.exists()


def test_it_works_from_an_object_store(bench: Bench, bucket: str) -> None:
    from shards.storage import open_storage

    remote = open_storage(f"{bucket}/set")
    for name in ("dataset.json", "manifest.parquet"):
        with remote.writer(name) as file:
            file.write((Path(bench.dataset.root) / name).read_bytes())
    assert told(bench, data={"preprocessed_data_root": f"{bucket}/set"}) == told(bench)
    nothing = f"{bucket}/nothing"
    refused(bench, nothing, data={"preprocessed_data_root": nothing})


def test_torch_is_not_imported(bench: Bench) -> None:
    """For a config without raw settings of DeepSpeed's, and a dataset that names the model it trains."""
    root = bench.copy_of_dataset()
    info = json.loads((root / "dataset.json").read_text())
    info["vae"]["source"] = str(bench.model)
    (root / "dataset.json").write_text(json.dumps(info))
    config = load(bench.config(data={"preprocessed_data_root": str(root)}), ["deepspeed=null"])
    path = write_config(bench.root / "plain.yaml", config.model_dump(mode="json"))
    script = (
        "import sys; from dist_trainer.config import load; from launch.queueing.forecast import forecast; "
        f"forecast(load({str(path)!r}), 8); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], env=environment(), cwd=ROOT, check=True, timeout=60)
