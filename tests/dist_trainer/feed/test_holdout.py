from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_trainer.config import RunConfig
from dist_trainer.feed.data import check_heldout, make_plan, open_parts, run_state
from dist_trainer.feed.holdout import check_apart, chosen, partners, split
from dist_trainer.model.family import read_config
from dist_trainer.rundir import RunFolder
from dist_trainer.world import World
from shards.dataset.info import Source
from shards.dataset.opened import Dataset
from shards.dataset.selection import select
from shards.errors import InputError
from shards.geometry import Scale
from tests.support.datasets import write_dataset
from tests.support.runs import lora_blocks, tiny_config


def ids(dataset: Dataset) -> set[int]:
    return set(dataset.manifest.ids.tolist())


def of(dataset: Dataset, rows: Any) -> Dataset:
    return replace(dataset, manifest=select(dataset.manifest, np.asarray(rows)))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("many"), 400)


def test_every_sample_is_trained_or_held_out_and_none_is_both(many: Dataset) -> None:
    training, held = split(many, seed=5, share=0.25)
    assert ids(training) | ids(held) == ids(many)
    assert not ids(training) & ids(held)
    assert 60 < len(held.manifest) < 140


def test_the_split_is_one_of_samples_not_of_rows_and_outlives_new_samples(many: Dataset) -> None:
    _, held = split(many, seed=5, share=0.25)
    _, backwards = split(of(many, np.arange(400)[::-1]), seed=5, share=0.25)
    assert ids(backwards) == ids(held)
    _, before = split(of(many, np.arange(100)), seed=5, share=0.25)
    assert ids(before) <= ids(held)


def test_another_seed_holds_out_others_and_a_larger_share_the_same_and_more(many: Dataset) -> None:
    _, held = split(many, seed=5, share=0.25)
    assert ids(split(many, seed=6, share=0.25)[1]) != ids(held)
    assert ids(held) < ids(split(many, seed=5, share=0.4)[1])


@pytest.mark.parametrize(
    ("share", "lacks"), [(1e-9, "holds none out"), (1 - 1e-9, "leaves none to train")], ids=["none", "all"]
)
def test_a_share_that_leaves_one_side_empty_is_refused(many: Dataset, share: float, lacks: str) -> None:
    with pytest.raises(InputError, match=rf"validation\.holdout: .* of the 400 samples of .* {lacks}"):
        split(many, seed=5, share=share)


def test_what_is_measured_of_many_held_out_samples_is_chosen_by_their_ids(many: Dataset) -> None:
    some = chosen(many, seed=5, most=30)
    assert len(some.manifest) == 30
    backwards = chosen(of(many, np.arange(400)[::-1]), seed=5, most=30)
    assert some.manifest.ids.tolist() == backwards.manifest.ids.tolist()
    assert len(chosen(many, seed=5, most=1000).manifest) == 400


def test_a_partner_is_another_sample_whose_references_have_the_same_sizes(tmp_path: Path) -> None:
    sizes = [(1, 4, 4), (1, 2, 2), None, (1, 4, 4), (2, 4, 4), (1, 4, 4), None]
    manifest = write_dataset(tmp_path, 7, grids=[(3, 4, 4)], references=sizes).manifest
    found = partners(manifest)
    assert found.tolist() == [5, -1, 6, 0, -1, 3, 2]
    assert partners(select(manifest, np.array([1, 4]))).tolist() == [-1, -1]


def configured(model_folder: Path, dataset: Dataset, output: Path, **validation: Any) -> RunConfig:
    return RunConfig.model_validate(tiny_config(model_folder, dataset.root, output, validation=validation))


def test_held_out_samples_are_in_no_step_of_the_plan(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    config = configured(model_folder, paired_dataset, tmp_path, holdout=0.3)
    training, held = open_parts(config)
    assert held is not None
    plan = make_plan(config, training, run_state(config, training, World(0, 1, 0), None)).plan
    planned = {int(training.manifest.ids[row]) for k in range(20) for row in plan.step(k).rows}
    assert planned == ids(training) == ids(paired_dataset) - ids(held)


def test_a_resumed_run_cannot_change_what_is_held_out(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    states = []
    for share in (0.3, 0.2):
        config = configured(model_folder, paired_dataset, tmp_path, holdout=share)
        states.append(run_state(config, open_parts(config)[0], World(0, 1, 0), None))
    with pytest.raises(InputError, match=r"holdout: was 0\.3, now 0\.2"):
        RunFolder(tmp_path).check_same(*states)


def test_another_dataset_can_be_held_out_and_all_of_the_first_is_trained(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    same = paired_dataset.info
    other = write_dataset(tmp_path / "other", 4, channels=8, text_width=48, seed=9, info=same)
    config = configured(model_folder, paired_dataset, tmp_path, holdout_data=str(other.root))
    training, held = open_parts(config)
    assert held is not None
    assert (ids(training), ids(held)) == (ids(paired_dataset), ids(other))


def test_a_held_out_dataset_that_is_trained_too_is_refused(tmp_path: Path) -> None:
    training = write_dataset(tmp_path / "a", 6)
    same = write_dataset(tmp_path / "b", 6, keys=[f"other_{number}" for number in range(6)])
    with pytest.raises(InputError, match=r"6 of its 6 samples are also in .*other_0"):
        check_apart(training, same)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({}, {"vae": Source("x", "another")}, "vae's fingerprint is another, that of .* is vae-0"),
        (
            {},
            {"text_encoder": Source("x", "wide")},
            "text_encoder's fingerprint is wide, that of .* is text-0",
        ),
        # Of data that somebody else has encoded no fingerprint may be known.
        ({"vae": Source(kind="A")}, {"vae": Source(kind="B")}, "vae's kind is B, that of .* is A"),
        (
            {},
            {"vae": Source(), "scale": Scale(8, 32)},
            r"vae's compression .* is \(8, 32\), that of .* is \(4, 8\)",
        ),
    ],
)
def test_a_held_out_dataset_of_other_encoders_is_refused(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], said: str
) -> None:
    first, second = (write_dataset(tmp_path / name, 3, seed=seed) for seed, name in enumerate("ab"))
    training = replace(first, info=replace(first.info, **ours))
    check_apart(training, replace(second, info=training.info))
    with pytest.raises(InputError, match=f"holdout_data: .*b: its {said}; encode both with the same models"):
        check_apart(training, replace(second, info=replace(training.info, **theirs)))


@pytest.mark.parametrize(
    ("changed", "blocks", "said"),
    [
        (
            {"channels": 4},
            {},
            "holdout_data: .*other: latents have 4 channels, the transformer of .* takes 8",
        ),
        ({"text_width": 16}, {}, "holdout_data: .*other: text embeddings are 16 wide"),
        ({}, lora_blocks(reference=True), "holdout_data: .*other: .* 4 of 4 samples have no reference"),
    ],
    ids=["channels", "text width", "references"],
)
def test_a_held_out_dataset_that_the_model_cannot_use_is_refused_as_training_data_is(
    model_folder: Path,
    paired_dataset: Dataset,
    tmp_path: Path,
    changed: dict[str, Any],
    blocks: dict[str, Any],
    said: str,
) -> None:
    other = write_dataset(tmp_path / "other", 4, **{"channels": 8, "text_width": 48, **changed})
    validation = {**blocks.get("validation", {}), "holdout_data": str(other.root)}
    config = RunConfig.model_validate(
        tiny_config(
            model_folder, paired_dataset.root, tmp_path / "run", **{**blocks, "validation": validation}
        )
    )
    transformer = read_config(str(model_folder))
    check_heldout(config, paired_dataset, transformer)
    with pytest.raises(InputError, match=rf"^validation\.{said}"):
        check_heldout(config, other, transformer)


def test_samples_held_out_of_the_training_data_are_looked_at_too(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    blocks = lora_blocks(reference=True)
    blocks["validation"]["holdout"] = 0.3
    config = RunConfig.model_validate(
        tiny_config(model_folder, paired_dataset.root, tmp_path / "run", **blocks)
    )
    bare = write_dataset(tmp_path / "bare", 4, channels=8, text_width=48)
    with pytest.raises(InputError, match=r"^validation\.holdout: .* 4 of 4 samples have no reference"):
        check_heldout(config, bare, read_config(str(model_folder)))


def test_a_held_out_dataset_that_is_not_there_is_named(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    config = configured(model_folder, paired_dataset, tmp_path, holdout_data=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"^validation\.holdout_data: .*nowhere"):
        open_parts(config)
