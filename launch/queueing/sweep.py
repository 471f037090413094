"""Runs that differ in some settings: the product of the values given for each."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from dist_trainer.config import RunConfig
from shards.errors import InputError

_LONGEST_NAME = 200  # bytes; file systems take 255, and logs of the run are named after it


@dataclass(frozen=True)
class Variant:
    """One run of a sweep: `name` of its folder below the config's output_dir, and the overrides that make it."""

    name: str
    overrides: tuple[str, ...]


def variants(sweeps: Sequence[str]) -> list[Variant]:
    """The runs of `optimization.learning_rate=1e-4,2e-4` and others like it, the last varying fastest.

    A run's folder is named `learning_rate=1e-4,rank=8`; keys are written in full where two end alike. Raises
    InputError for what is not key=value,value, for a key given twice, and for values whose folders would be the same.
    """
    given = [_parse(text) for text in sweeps]
    keys = [key for key, _ in given]
    for key, count in Counter(keys).items():
        if count > 1:
            raise InputError(f"--sweep {key}: given {count} times; write all its values in one, after commas")
    last = Counter(key.rpartition(".")[2] for key in keys)
    labels = [key if last[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys]
    found = [
        Variant(
            ",".join(f"{label}={_in_a_path(value)}" for label, value in zip(labels, values, strict=True)),
            tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True)),
        )
        for values in itertools.product(*(values for _, values in given))
    ]
    _check_names(found)
    return found


def check_apart(configs: Sequence[RunConfig]) -> None:
    """Raise InputError where runs of a sweep would upload to one repository, each over the one before."""
    shared = Counter(config.hub.hub_model_id for config in configs if config.hub.push_to_hub)
    for name, count in shared.items():
        if count > 1:
            raise InputError(
                f"hub.hub_model_id = {name}: {count} runs of the sweep would upload to it; set hub.push_to_hub=false "
                "and upload the best one by `ltx-train push RUN`"
            )


def _parse(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    key = key.strip()
    try:
        node = yaml.compose(f"[{values}]", Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if not equals or not all(key.split(".")) or not isinstance(node, yaml.SequenceNode) or not node.value:
        raise InputError(
            f"--sweep {text}: write block.key=value,value, such as optimization.learning_rate=1e-4,2e-4"
        )
    if key == "output_dir":
        raise InputError("--sweep output_dir: each run has a folder of its own below output_dir already")
    # As they were written, for the override to read: 1e-4 is a word to YAML and a number to the config.
    return key, [f"[{values}]"[one.start_mark.index : one.end_mark.index] for one in node.value]


def _in_a_path(value: str) -> str:
    return re.sub(r"[^\w.+=\[\]-]+", "_", value).strip("_") or "_"


def _check_names(found: Sequence[Variant]) -> None:
    first: dict[str, Variant] = {}
    for variant in found:
        if len(variant.name.encode()) > _LONGEST_NAME:
            raise InputError(
                f"--sweep: {variant.name[:60]}...: too long for a folder's name; sweep over fewer or shorter values"
            )
        other = first.setdefault(variant.name, variant)
        if other is not variant:
            raise InputError(
                f"--sweep: {' '.join(other.overrides)} and {' '.join(variant.overrides)} would share the folder "
                f"{variant.name}; leave one out"
            )
