"""Loading: values, extends, overrides, and messages that say where."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.config import RunConfig, load
from shards.errors import InputError

SMALLEST = "data: {preprocessed_data_root: d}\nlora: {}\n"


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load(path, overrides or [])
    return str(caught.value).replace(f"{path.parent}/", "")


def test_smallest_file_is_all_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path, SMALLEST))
    assert config == RunConfig.model_validate({"data": {"preprocessed_data_root": "d"}, "lora": {}})
    assert config.output_dir == Path("outputs").resolve()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E-4", 2e-4),
        ("1.5e-3", 1.5e-3),
        ("'1e-4'", 1e-4),
        ("1", 1.0),
        (".5", 0.5),
        ("1e+0", 1.0),
    ],
)
def test_scientific_notation_is_a_number(tmp_path: Path, text: str, value: float) -> None:
    assert (
        load(
            write(tmp_path, SMALLEST + f"optimization: {{learning_rate: {text}}}")
        ).optimization.learning_rate
        == value
    )


@pytest.mark.parametrize(
    ("text", "value"), [("1e3", 1000), ("2_000", 2000), ("0x10", 16), ("'7'", 7), ("010", 10)]
)
def test_whole_numbers(tmp_path: Path, text: str, value: int) -> None:
    assert load(write(tmp_path, SMALLEST + f"optimization: {{steps: {text}}}")).optimization.steps == value


@pytest.mark.parametrize(
    ("word", "precision"),
    [
        ("no", "fp32"),
        ('"no"', "fp32"),
        ("null", "fp32"),
        ("false", "fp32"),
        ("bf16", "bf16"),
        ("fp16", "bf16"),
    ],
)
def test_precision_words(tmp_path: Path, word: str, precision: str) -> None:
    text = SMALLEST + f"acceleration: {{mixed_precision_mode: {word}}}"
    assert load(write(tmp_path, text)).acceleration.precision == precision


def test_words_stay_words(tmp_path: Path) -> None:
    text = SMALLEST + "validation: {prompts: [no, on, 12:30, 2024-01-01, '1e5']}\nhub: {push_to_hub: no}\n"
    config = load(write(tmp_path, text))
    assert config.validation.prompts == ("no", "on", "12:30", "2024-01-01", "1e5")
    assert config.hub.push_to_hub is False


def test_empty_block_is_its_defaults(tmp_path: Path) -> None:
    assert (
        load(write(tmp_path, SMALLEST + "optimization:\n  # steps: 5\nbatching:\n")).optimization.steps
        == 3000
    )


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = (
        "data: {preprocessed_data_root: d}\n"
        "lora: {<<: {rank: 8, alpha: 9}, rank: 4}\n"
        "validation: {prompts: &p [a, b], images: *p}\n"
    )
    config = load(write(tmp_path, text))
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha) == (4, 9)
    assert config.validation.images == ("a", "b")


def test_extends_merges_blocks_and_replaces_lists(tmp_path: Path) -> None:
    write(
        tmp_path,
        SMALLEST + "optimization: {steps: 7, learning_rate: 1}\nvalidation: {prompts: [a, b]}\n",
        "base.yaml",
    )
    write(
        tmp_path,
        "extends: ../base.yaml\noptimization: {steps: 8}\nvalidation: {prompts: [c]}\n",
        "deep/mid.yaml",
    )
    top = write(tmp_path, "extends: deep/mid.yaml\noptimization: {warmup_steps: 2}\n")
    config = load(top)
    assert (
        config.optimization.steps,
        config.optimization.learning_rate,
        config.optimization.warmup_steps,
    ) == (8, 1, 2)
    assert config.validation.prompts == ("c",)


def test_null_takes_an_extended_block_away(tmp_path: Path) -> None:
    write(tmp_path, SMALLEST + "batching: {samples_per_step: 3}\n", "base.yaml")
    top = write(tmp_path, "extends: base.yaml\nlora: null\nbatching: null\nmodel: {training_mode: full}\n")
    config = load(top)
    assert config.lora is None
    assert config.batching.samples_per_step is None


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: run.yaml\n", "base.yaml")
    message = refusal(write(tmp_path, "seed: 1\nextends: base.yaml\n"))
    assert (
        message
        == "base.yaml:1: extends = run.yaml: goes round in a circle: run.yaml -> base.yaml -> run.yaml"
    )


def test_missing_base_is_named_with_its_line(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "seed: 1\nextends: nope.yaml\n"))
    assert message == "run.yaml:2: extends = nope.yaml: no such file: nope.yaml"


def test_a_wrong_key_is_placed_in_the_file_that_set_it(tmp_path: Path) -> None:
    write(tmp_path, SMALLEST + "seed: -1\noptimization:\n  steps: 0\n  batch_size: 0\n", "base.yaml")
    message = refusal(write(tmp_path, "extends: base.yaml\noptimization:\n  steps: -2\n"))
    assert "base.yaml:3: seed = -1: should be greater than or equal to 0" in message
    assert "base.yaml:6: optimization.batch_size = 0: should be greater than 0" in message
    assert "run.yaml:3: optimization.steps = -2: should be greater than 0" in message


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "optimization: {steps: 5}\n")
    config = load(
        path,
        [
            "optimization.steps=6",
            "optimization.steps=9",
            "optimization.learning_rate=1e-4",
            "lora.target_modules=[to_q, to_k]",
            "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0",
            "model={causal_positions: true}",
            "output_dir=a=b",
        ],
    )
    assert config.optimization.steps == 9
    assert config.optimization.learning_rate == 1e-4
    assert config.lora is not None
    assert config.lora.target_modules == ("to_q", "to_k")
    assert config.deepspeed.config == {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    assert config.model.causal_positions
    assert config.output_dir.name == "a=b"


def test_null_override_clears_a_key(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "batching: {samples_per_step: 5}\n")
    assert load(path, ["batching.samples_per_step="]).batching.samples_per_step is None
    assert load(path, ["batching=null"]).batching.samples_per_step is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "command line: steps: write an override as block.key=value"),
        ("a..b=1", "command line: a..b=1: write an override as block.key=value"),
        ("=1", "command line: =1: write an override as block.key=value"),
        ("seed=[1", "command line: not valid YAML: "),
        (
            "optimization.stepz=1",
            "command line: optimization.stepz: unknown key; did you mean optimization.steps?",
        ),
        ("optimisation.steps=1", "command line: optimisation: unknown key; did you mean optimization?"),
        ("optimization.steps=x", "command line: optimization.steps = 'x': should be a valid integer"),
        ("extends=b.yaml", "command line: extends: unknown key"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, message: str) -> None:
    assert refusal(write(tmp_path, SMALLEST), [override]).startswith(message)


def test_every_problem_in_one_message(tmp_path: Path) -> None:
    message = refusal(
        write(
            tmp_path,
            "model:\n"  # 1
            "  training_mode: loar\n"  # 2
            "optimization:\n"  # 3
            "  learning_rte: 1e-4\n"  # 4
            "  rank: 3\n"  # 5
            "  scheduler_type: cosine\n"  # 6
            "  scheduler_params:\n"  # 7
            "    eta_mn: 1\n"  # 8
            "    eta_min: 2\n"  # 9
            "validation:\n"  # 10
            "  prompts: [a,\n"  # 11
            "    3]\n"  # 12
            "hub: {push_to_hub: true}\n",  # 13
        )
    )
    assert message.splitlines() == [
        "8 problems in run.yaml:",
        "  run.yaml: data.preprocessed_data_root: required: the folder of a dataset that `ltx-shards encode` "
        "wrote",
        "  run.yaml:2: model.training_mode = 'loar': should be 'lora' or 'full'; did you mean lora?",
        "  run.yaml:4: optimization.learning_rte: unknown key; did you mean optimization.learning_rate?",
        "  run.yaml:5: optimization.rank: unknown key; did you mean lora.rank?",
        "  run.yaml:8: optimization.scheduler_params.eta_mn: unknown key; did you mean "
        "optimization.scheduler_params.eta_min?",
        "  run.yaml:9: optimization.scheduler_params.eta_min = 2.0: above optimization.learning_rate "
        "(0.0005), so the rate would rise",
        "  run.yaml:12: validation.prompts.1 = 3: should be a valid string",
        "  run.yaml:13: hub.hub_model_id: required when hub.push_to_hub is true",
    ]


def test_one_problem_is_one_line(tmp_path: Path) -> None:
    assert (
        refusal(write(tmp_path, SMALLEST + "sed: 3\n")) == "run.yaml:3: sed: unknown key; did you mean seed?"
    )


def test_unknown_key_far_from_all_lists_them(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, SMALLEST + "hub: {zzz: 3}\n"))
    assert message == "run.yaml:3: hub.zzz: unknown key; one of: hub_model_id, private, push_to_hub"


def test_keys_set_twice_are_refused_with_both_lines(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, SMALLEST + "optimization:\n  steps: 1\n  steps: 2\nlora: {}\n"))
    assert "run.yaml:5: optimization.steps: set twice, first at run.yaml:4; remove one" in message
    assert "run.yaml:6: lora: set twice, first at run.yaml:2; remove one" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  a: [1\n", "run.yaml:3: not valid YAML: "),
        ("a: 1\n\tb: 2\n", "run.yaml:2: not valid YAML: "),
        ("a: 1\n---\nb: 2\n", "run.yaml:2: not valid YAML: "),
        ("- a\n", "run.yaml: a config file is a mapping of blocks"),
        ("just words", "run.yaml: a config file is a mapping of blocks"),
        (
            "seed: !!python/object/apply:os.getcwd []\n",
            "run.yaml:1: not valid YAML: could not determine a constructor",
        ),
        ("a: &x {b: *x}\n", "run.yaml: nested too deeply, or an alias that holds itself"),
        ("extends: [a, b]\n", "run.yaml:1: extends = ['a', 'b']: should be the path of one YAML file"),
        ("seed: \x07\n", "run.yaml: not valid YAML: "),
        ("", "2 problems in run.yaml:"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(write(tmp_path, text)).startswith(message)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nope\.yaml: cannot read this config file: No such file"):
        load(tmp_path / "nope.yaml")
    with pytest.raises(InputError, match="cannot read this config file: Is a directory"):
        load(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"seed: \xff\xfe\xe9")
    with pytest.raises(InputError, match="not UTF-8 text"):
        load(latin)
