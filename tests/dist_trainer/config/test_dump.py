"""A dumped configuration loads to the same one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.config import RunConfig, dump, load

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "1e-4",
        "no",
        "null",
        "~",
        "1:30",
        "2024-01-01",
        "0x1f",
        "<<",
        "=",
        ".nan",
        "010",
        "a: b",
        "# c",
        "",
        "- x",
        "1_0",
    ]
)
positive = st.integers(1, 10**12)
share = st.floats(0, 1)
rate = st.floats(0, 1e3)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
schedules = st.one_of(
    st.just({"scheduler_type": "constant"}),
    st.fixed_dictionaries(
        {
            "scheduler_type": st.just("linear"),
            "scheduler_params": st.fixed_dictionaries({"end_factor": share}),
        }
    ),
    st.fixed_dictionaries(
        {
            "scheduler_type": st.just("cosine_with_restarts"),
            "scheduler_params": st.fixed_dictionaries(
                {}, optional={"T_0": positive, "eta_min": st.just(0.0)}
            ),
        }
    ),
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    prompts = draw(st.lists(words, max_size=3))
    return {
        "model": {"model_source": draw(st.sampled_from(["LTXV_2B_0.9.5", "a/b", "123", "1e5", "~/m"]))},
        "lora": {"target_modules": draw(st.lists(words, min_size=1, max_size=3)), "dropout": draw(share)},
        "optimization": {
            "learning_rate": draw(rate),
            "weight_decay": draw(rate),
            "betas": [draw(st.floats(0, 1, exclude_max=True)) for _ in range(2)],
            **draw(schedules),
        },
        "acceleration": {"mixed_precision_mode": draw(st.sampled_from(["no", "bf16", None, False]))},
        "data": {"preprocessed_data_root": draw(words.filter(lambda word: word and "\0" not in word))},
        "batching": {
            draw(st.sampled_from(["samples_per_step", "tokens_per_step"])): draw(st.none() | positive)
        },
        "validation": {"prompts": prompts, "images": draw(st.none() | st.just(prompts))},
        "deepspeed": {"config": {"ours": draw(json_like)}},
        "wandb": {"tags": draw(st.lists(words, max_size=2)), "entity": draw(st.none() | words)},
        "seed": draw(st.integers(0, 2**64 - 1)),
        "output_dir": draw(st.sampled_from(["outputs", "~/x", "a b/c", "1e5", "no"])),
    }


@settings(max_examples=150, deadline=None)
@given(configs())
def test_round_trip(values: dict[str, Any]) -> None:
    config = RunConfig.model_validate(values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump(config), encoding="utf-8", newline="")
        assert load(path) == config


@settings(max_examples=50, deadline=None)
@given(configs())
def test_other_yaml_readers_see_the_same(values: dict[str, Any]) -> None:
    config = RunConfig.model_validate(values)
    assert RunConfig.model_validate(yaml.safe_load(dump(config))) == config


def test_every_key_is_written() -> None:
    config = RunConfig.model_validate({"data": {"preprocessed_data_root": "d"}, "lora": {}})
    assert list(yaml.safe_load(dump(config))) == list(RunConfig.model_fields)
