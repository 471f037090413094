"""A sweep is the product of its values, each run with a folder of its own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.config import RunConfig
from launch.queueing.sweep import check_apart, variants
from shards.errors import InputError

KEYS = ("optimization.learning_rate", "lora.rank", "seed", "optimization.steps")
VALUES = st.lists(
    st.integers(0, 10**6).map(str) | st.sampled_from(["1e-4", "2e-4", "0.5"]), min_size=1, unique=True
)
SWEEPS = st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1)


@given(SWEEPS)
def test_every_combination_is_there_once_in_a_folder_of_its_own(given_values: dict[str, list[str]]) -> None:
    found = variants([f"{key}={','.join(values)}" for key, values in given_values.items()])
    assert len(found) == math.prod(len(values) for values in given_values.values())
    assert len({one.overrides for one in found}) == len({one.name for one in found}) == len(found)
    for one in found:
        assert "/" not in one.name
        for (key, values), override in zip(given_values.items(), one.overrides, strict=True):
            assert override.partition("=")[0] == key
            assert override.partition("=")[2] in values


def test_a_folder_is_named_by_the_ends_of_the_keys() -> None:
    found = variants(["optimization.learning_rate=1e-4,2e-4", "lora.rank=8"])
    assert [one.name for one in found] == ["learning_rate=1e-4,rank=8", "learning_rate=2e-4,rank=8"]
    found = variants(["seed=1", "validation.seed=2"])
    assert [one.name for one in found] == ["seed=1,validation.seed=2"]


def test_a_value_is_handed_on_as_it_was_written() -> None:
    (one, other) = variants(["lora.target_modules=[to_q, 'to_k'],[to_v]"])
    assert one.overrides == ("lora.target_modules=[to_q, 'to_k']",)
    assert other.overrides == ("lora.target_modules=[to_v]",)
    (one,) = variants(["data.preprocessed_data_root=/data/mine"])
    assert one.overrides == ("data.preprocessed_data_root=/data/mine",)
    assert one.name == "preprocessed_data_root=data_mine"


@pytest.mark.parametrize(
    ("sweeps", "said"),
    [
        (["seed"], "block.key=value,value"),
        (["seed="], "block.key=value,value"),
        (["=1,2"], "block.key=value,value"),
        (["lora..rank=1"], "block.key=value,value"),
        (["seed=[1"], "block.key=value,value"),
        (["seed=1", "seed=2"], "given 2 times"),
        (["output_dir=a,b"], "folder of its own"),
        (["seed=1,1"], "share the folder"),
        (["model.model_source=/a/b,a_b"], "share the folder"),
        ([f"model.model_source={'a' * 300}"], "too long"),
    ],
)
def test_what_gives_no_sweep_is_refused(sweeps: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        variants(sweeps)


def test_runs_that_would_upload_over_each_other_are_refused() -> None:
    def config(**hub: object) -> RunConfig:
        return RunConfig.model_validate({"lora": {}, "hub": hub, "data": {"preprocessed_data_root": "a"}})

    first, again, other = (config(push_to_hub=True, hub_model_id=name) for name in ("me/a", "me/a", "me/b"))
    check_apart([config(), config(), first, other])
    with pytest.raises(InputError, match="2 runs of the sweep would upload"):
        check_apart([first, other, again])
