"""A wrong value of any key of the schema is refused, with its file, its line and its key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest
from pydantic import BaseModel

from dist_trainer.config import RunConfig, load
from shards.errors import InputError
from tests.support.runs import lora_blocks, tiny_config, write_config


def _blocks(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and field of every setting of the schema."""
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            yield from _blocks(inner[0], (*path, name))
        else:
            yield (*path, name), field


def _outside(field: Any) -> Iterator[Any]:
    """Values just outside the bounds that a number's field declares."""
    for kind, name, step in (
        (annotated_types.Gt, "gt", 0),
        (annotated_types.Ge, "ge", -1),
        (annotated_types.Lt, "lt", 0),
        (annotated_types.Le, "le", 1),
    ):
        for bound in field.metadata:
            if isinstance(bound, kind):
                yield getattr(bound, name) + step


WRONG = [
    (path, value)
    for path, field in _blocks(RunConfig)
    for value in ({"no": ["such", "thing"]}, *_outside(field))
    if path != ("deepspeed", "config")  # free form, for DeepSpeed to refuse
]


def test_the_table_of_wrong_values_covers_the_schema() -> None:
    assert len({path for path, _ in WRONG}) > 60
    assert (("optimization", "steps"), 0) in WRONG


@pytest.mark.parametrize(("path", "value"), WRONG, ids=[f"{'.'.join(path)}={value}" for path, value in WRONG])
def test_a_wrong_value_of_any_key_is_named_with_its_line(
    tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    write_config(tmp_path / "base.yaml", tiny_config(tmp_path, tmp_path, tmp_path, **lora_blocks()))
    nested = [f"{'  ' * depth}{name}:" for depth, name in enumerate(path)]
    (tmp_path / "wrong.yaml").write_text(
        "\n".join(["extends: base.yaml", *nested]) + f" {json.dumps(value)}\n"
    )
    with pytest.raises(InputError) as caught:
        load(tmp_path / "wrong.yaml")
    assert f"wrong.yaml:{1 + len(path)}: {'.'.join(path)}" in str(caught.value)
