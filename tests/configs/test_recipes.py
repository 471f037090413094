"""The shipped recipes load, and each states only what differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_trainer.config import RunConfig, load
from dist_trainer.config.dialect import Loader
from shards.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
# A file named base.yaml is only there to be extended.
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "base.yaml")
FOLDERS = (CONFIGS, CONFIGS / "2b", CONFIGS / "tiny")


def named(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def test_each_size_has_each_mode() -> None:
    for folder in FOLDERS:
        assert {"full_ft.yaml", "ic_lora.yaml", "lora.yaml"} <= {path.name for path in folder.glob("*.yaml")}


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_trains_what_its_name_says(path: Path) -> None:
    config = load(path)
    full = path.stem == "full_ft"
    assert config.model.training_mode == ("full" if full else "lora")
    assert (config.lora is None) == full
    assert (config.conditioning.mode == "reference_video") == (path.stem == "ic_lora")


def test_sizes() -> None:
    for name in ("full_ft.yaml", "ic_lora.yaml", "lora.yaml"):
        assert load(CONFIGS / name).model.model_source.startswith("LTXV_13B")
        assert load(CONFIGS / "2b" / name).model.model_source.startswith("LTXV_2B")
        assert not load(CONFIGS / "tiny" / name).model.model_source.startswith("LTXV_")


def test_output_folders_differ() -> None:
    folders = [load(path).output_dir for path in RECIPES]
    assert len(set(folders)) == len(folders)


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def without(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key != path[0]}
    if len(path) > 1 and (inner := without(values[path[0]], path[1:])):
        rest[path[0]] = inner
    return rest


def try_load(path: Path) -> RunConfig | None:
    try:
        return load(path)
    except InputError:
        return None


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_repeats_no_default_and_nothing_of_its_base(path: Path, tmp_path: Path) -> None:
    values = yaml.load(path.read_text(), Loader=Loader)
    base = {"extends": str(path.parent / values.pop("extends"))} if "extends" in values else {}
    whole, part = load(path), tmp_path / "part.yaml"
    for leaf in leaves(values):
        part.write_text(yaml.safe_dump({**base, **without(values, leaf)}))
        assert try_load(part) != whole, f"{'.'.join(leaf)} changes nothing"
