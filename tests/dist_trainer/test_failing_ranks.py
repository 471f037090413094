"""Two ranks and something wrong on one of them, or on both: one message over both, and both end within seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shards.dataset.manifest import write_manifest
from shards.dataset.opened import Dataset
from tests.support.bench import TOGETHER_S, Bench, assert_refused, only_row
from tests.support.datasets import write_dataset
from tests.support.forked import train
from tests.support.runs import lora_blocks

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path, paired_dataset: Dataset) -> Bench:
    return Bench(tmp_path, model_folder, paired_dataset)


def test_a_missing_shard_is_found_by_the_one_rank_that_reads_it(bench: Bench) -> None:
    root, manifest = bench.copy_of_dataset(), bench.dataset.manifest
    row = only_row(bench.dataset, step=1, rank=1, size=2)
    # One sample of it is looked for elsewhere, so that all before it is there.
    moved = manifest.shard.copy()
    moved[row] = len(manifest.shards)
    write_manifest(root, replace(manifest, shard=moved, shards=(*manifest.shards, "shards/gone.tar")))
    ended = bench.run(size=2, blocks={"data": {"preprocessed_data_root": str(root)}})
    assert_refused(ended, "shards/gone.tar", repr(manifest.keys[row]), "No such file", code=1)
    assert ended.stderr[1].splitlines()[0] == ended.errors[0], "the rank that read it speaks"
    assert "rank 0 ends: rank 1 failed" in ended.stderr[0]
    assert "step 1/" in ended.stdout[0], "what came before it was trained"


def test_two_ranks_with_the_same_wrong_config_speak_once(bench: Bench) -> None:
    ended = bench.run(size=2, blocks={"optimization": {"stepz": 3}})
    assert_refused(ended, "optimization.stepz")
    assert ended.codes == [2, 2]


def test_two_ranks_with_the_same_wrong_dataset_speak_once(bench: Bench) -> None:
    wrong = write_dataset(bench.root / "data", 4, channels=6, text_width=bench.dataset.info.text_width)
    ended = bench.run(size=2, blocks={"data": {"preprocessed_data_root": str(wrong.root)}})
    assert_refused(ended, "latents were encoded by the VAE vae-0 ")
    assert ended.codes == [2, 2]


def test_two_ranks_with_wrong_adapters_speak_once(bench: Bench) -> None:
    ended = bench.run(size=2, blocks={**lora_blocks(), "lora": {"rank": 4, "target_modules": ["none"]}})
    assert_refused(ended, "lora.target_modules: 'none'")
    assert ended.codes == [2, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_cannot_read_its_config_is_not_waited_for(bench: Bench, rank: int) -> None:
    arguments = [[str(bench.config())], [str(bench.config())]]
    arguments[rank] = [str(bench.root / "none.yaml")]
    ended = bench.run(size=2, blocks={}, arguments=arguments)
    assert_refused(ended, "none.yaml: cannot read this config file")
    assert ended.stderr[rank].startswith("error:")


def test_a_damaged_checkpoint_that_only_rank_0_looks_at_is_told_once(bench: Bench) -> None:
    config = bench.config(optimization={"steps": 1})
    train(1, config, logs=bench.root / "first")
    file = next((bench.output / "checkpoints" / "step_000001").glob("rank_*.safetensors"))
    file.write_bytes(file.read_bytes()[:-5])
    ended = bench.run(size=2, blocks={"optimization": {"steps": 2}})
    assert_refused(ended, file)


def test_a_rank_that_never_starts_is_named(bench: Bench) -> None:
    ended = bench.run(size=2, blocks={"deepspeed": {"timeout_minutes": 0.05}}, absent=[1])
    assert_refused(ended, "start: after 3 s still missing rank 1 (never seen)", code=1)
    assert ended.seconds < 3 + TOGETHER_S


def test_a_rank_0_that_never_starts_is_named(bench: Bench) -> None:
    ended = bench.run(size=2, blocks={"deepspeed": {"timeout_minutes": 0.05}}, absent=[0])
    assert_refused(ended, "start: rank 0 is not reachable at 127.0.0.1:", code=1)
    assert ended.seconds < 3 + TOGETHER_S


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ([{"RANK": "0"}, {"RANK": "1"}], ["RANK=0, WORLD_SIZE=(unset)"]),
        ([{"SLURM_STEP_ID": "0", "SLURM_PROCID": str(r)} for r in (0, 1)], ["SLURM_NTASKS=(unset)"]),
        (
            [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2"} for r in (0, 1)],
            ["MASTER_ADDR and MASTER_PORT must be set"],
        ),
    ],
    ids=["no-world-size", "no-ntasks", "no-master"],
)
def test_a_half_set_environment_is_named_once(
    bench: Bench, places: list[dict[str, str]], named: list[str]
) -> None:
    assert_refused(bench.run(size=2, blocks={}, environ=places), "environment:", *named)
