"""From YAML files and command-line overrides to a checked `RunConfig`, and back to YAML."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dist_trainer.config import problem
from dist_trainer.config.dialect import Dumper
from dist_trainer.config.problem import Problem, problems_of
from dist_trainer.config.run import RunConfig
from dist_trainer.config.source import Source, overridden, read
from shards.errors import InputError


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in the YAML file `path`, with `overrides` such as `optimization.steps=10` on top.

    `extends: other.yaml` at the top of a file lays it over another one (relative to it); mappings merge,
    lists and scalars are replaced, and null puts a block back to its defaults.

    Raises:
        InputError: everything that is wrong, a line each: where it was set, its key, its value, what to do.
    """
    source = read(Path(os.path.expanduser(path)))
    for text in overrides:
        source = overridden(source, text)
    config, problems = _check(source)
    placed = [*source.faults, *((source.origin(one.path), str(one)) for one in problems)]
    lines = [
        f"{where}: {what}" for where, what in sorted(placed, key=lambda one: (one[0].place, one[0].line or 0))
    ]
    if config is None or lines:
        raise InputError(
            lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems in {path}:", *lines])
        )
    return config


def dump(config: RunConfig) -> str:
    """YAML with every key resolved; `load` reads it back to an equal configuration."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _check(source: Source) -> tuple[RunConfig | None, list[Problem]]:
    """The configuration, or every problem in it.

    Rules between keys can only be looked at where the keys are valid by themselves, so what is wrong is taken
    out and the rest is checked again, leaving out complaints about what was already named.
    """
    values, found = copy.deepcopy(source.values), list[Problem]()
    while True:
        try:
            config = RunConfig.model_validate(values)
        except ValidationError as error:
            fresh = [one for one in problems_of(error, RunConfig) if not _named(one, found)]
        else:
            return (None, found) if found else (config, [])
        if not fresh:
            return None, found
        found += fresh
        for one in fresh:
            _take_out(values, one.path)


def _named(one: Problem, found: list[Problem]) -> bool:
    """Whether `one` is about a key that is already reported, or about one that holds it or that it holds."""
    keys = (one.path, *one.others)
    return any(_overlap(key, other.path) for key in keys for other in found)


def _overlap(one: problem.Path, other: problem.Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _take_out(values: dict[str, Any], path: problem.Path) -> None:
    """Remove the key at `path`; for an entry of a list, the whole list."""
    holder: Any = values
    for index, name in enumerate(path):
        if not isinstance(holder, dict) or name not in holder:
            return
        if index == len(path) - 1 or not isinstance(holder[name], dict):
            del holder[name]
            return
        holder = holder[name]
