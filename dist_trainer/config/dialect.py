"""How our YAML reads and writes scalars."""

from __future__ import annotations

import re
from typing import Any

import yaml

_BOOL, _INT, _FLOAT, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null"))

# YAML 1.2's scalars. PyYAML's own are YAML 1.1: there 1e-4 is a string, `no` is false and 1:30 is ninety.
_RESOLVERS = (
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_INT, r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        _FLOAT,
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
)


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 scalars, merge keys (`<<`) kept."""


def _tuple(loader: Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _version(loader: Loader, node: yaml.SequenceNode) -> Any:
    found = loader.construct_sequence(node, deep=True)
    return found[0] if len(found) == 1 else found


# In the config that LTX-Video-Trainer saves with its weights some values have such tags: what is in them is meant.
Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
Loader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:ltxv_trainer.model_loader.LtxvModelVersion", _version
)


class Dumper(yaml.SafeDumper):
    """Quotes every string that either kind of reader would take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these line breaks away in every style but double quotes.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _represent_text)

Loader.yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile(r"^(?:<<)$"))]}
for _tag, _pattern, _first in _RESOLVERS:
    Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
    Dumper.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
