from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_trainer.config import RunConfig
from dist_trainer.hub.card import Shown, card
from tests.support.runs import lora_blocks, tiny_config

CURVES = Shown("curves.png")


def configured(source: str, **blocks: Any) -> RunConfig:
    blocks["model"] = {**blocks.get("model", {}), "model_source": source}
    return RunConfig.model_validate(tiny_config(Path(source), Path("data"), Path("out"), **blocks))


def parts(text: str) -> tuple[dict[str, Any], str]:
    """The header that the hub reads, and the rest."""
    _, head, rest = text.split("---\n", 2)
    return yaml.safe_load(head), rest


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("LTXV_13B_097_DEV", "Lightricks/LTX-Video-0.9.7-dev"),
        ("Lightricks/LTX-Video", "Lightricks/LTX-Video"),
        ("/models/ltx", None),
        ("~/ltx", None),
        ("./ltx", None),
        ("LTXV_2B_0.9.6_DEV", None),
    ],
)
def test_the_header_names_the_base_where_the_hub_knows_it(source: str, base: str | None) -> None:
    header, text = parts(card(configured(source, **lora_blocks()), "me/mine", 7, {}, CURVES))
    assert header.get("base_model") == base
    assert header.get("base_model_relation") == (base and "adapter")
    assert "/models" not in text


@pytest.mark.parametrize(
    ("source", "continued", "opened"),
    [
        ("LTXV_2B_0.9.5", False, None),
        ("LTXV_2B_0.9.5", True, "from_pretrained"),
        ("LTXV_2B_0.9.6_DEV", False, "from_single_file"),
        ("LTXV_2B_0.9.6_DEV", True, "from_pretrained"),
    ],
)
def test_the_code_opens_the_transformer_that_a_lora_was_trained_on(
    source: str, continued: bool, opened: str | None
) -> None:
    header, text = parts(card(configured(source, **lora_blocks()), "me/mine", 7, {}, CURVES, continued))
    code = text.split("```python\n")[1].split("```")[0]
    called = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    openers = {ast.unparse(call).partition("LTXVideoTransformer3DModel.")[2] for call in called} - {""}
    assert openers == ({opened} if opened else set())
    assert ("transformer=transformer" in code) == bool(opened)
    assert ("ltxv-2b-0.9.6-dev" in code) == (opened == "from_single_file")
    assert ("base_model" in header) == (opened is None)


@pytest.mark.parametrize("kind", ["lora", "ic-lora", "full"])
def test_the_code_for_diffusers_is_code(kind: str) -> None:
    blocks = {"lora": lora_blocks(), "ic-lora": lora_blocks(reference=True), "full": {}}[kind]
    facts = {"trigger_word": "NIMBUS: 'x'", "reference_downscale_factor": "2"}
    header, text = parts(card(configured("LTXV_2B_0.9.5", **blocks), "me/mine", 7, facts, CURVES))
    code = text.split("```python\n")[1].split("```")[0]
    called = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    assert ("load_lora_weights" in called) == (kind != "full")
    assert (kind in header["tags"]) == (kind != "full")
    assert header["instance_prompt"] == "NIMBUS: 'x'"
    assert ("2 times smaller" in text) == (kind == "ic-lora")
    assert "trained for 7 steps" in text
    assert "![loss and learning rate](curves.png)" in text


def test_videos_are_shown_with_their_prompts() -> None:
    shown = Shown(None, [("samples/01_a-cat.mp4", "a cat: 'meow'"), ("samples/02_a-dog.png", "a dog")])
    header, text = parts(card(configured("LTXV_2B_0.9.5"), "me/mine", 7, {}, shown))
    assert header["widget"][0] == {"text": "a cat: 'meow'", "output": {"url": "samples/01_a-cat.mp4"}}
    assert '<video controls src="samples/01_a-cat.mp4">' in text
    assert "(samples/02_a-dog.png)" in text
