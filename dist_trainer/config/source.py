"""A configuration as it was written: its values, and for each key the file and line that set it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dist_trainer.config import problem
from dist_trainer.config.dialect import Loader
from shards.errors import InputError


class Origin(NamedTuple):
    """Where a key was set: a file and, if one, its line from 1."""

    place: str
    line: int | None = None

    def __str__(self) -> str:
        return self.place if self.line is None else f"{self.place}:{self.line}"


@dataclass
class Source:
    """Plain values (dict, list, scalars), the origins of their paths, and faults found while reading."""

    values: dict[str, Any]
    origins: dict[problem.Path, Origin]
    faults: list[tuple[Origin, str]] = field(default_factory=list)

    def origin(self, path: problem.Path) -> Origin:
        """Where `path` was set, or the nearest thing that holds it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def under(self, over: Source) -> Source:
        """This source with `over` on top: mappings merge, everything else is replaced."""
        return Source(
            merged(self.values, over.values), {**self.origins, **over.origins}, [*self.faults, *over.faults]
        )


def read(path: Path, chain: tuple[Path, ...] = ()) -> Source:
    """The file at `path` laid over the one its top-level `extends` names (relative to it), and so on.

    Raises:
        InputError: a file that is missing, no YAML or no mapping, or that extends itself in the end.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot read this config file: {reason}") from error
    source = parse(text, str(path))
    if "extends" not in source.values:
        return source
    base, where = source.values.pop("extends"), source.origin(("extends",))
    if not isinstance(base, str):
        raise InputError(f"{where}: extends = {problem.brief(base)}: should be the path of one YAML file")
    target = path.parent / os.path.expanduser(base)
    seen = [*chain, path]
    if any(os.path.realpath(target) == os.path.realpath(one) for one in seen):
        raise InputError(
            f"{where}: extends = {base}: goes round in a circle: {' -> '.join(map(str, [*seen, target]))}"
        )
    if not target.is_file():
        raise InputError(f"{where}: extends = {base}: no such file: {target}")
    return read(target, tuple(seen)).under(source)


def overridden(source: Source, text: str) -> Source:
    """`source` with one `a.b=c` of the command line on top; `c` is read as YAML.

    Raises:
        InputError: no `=`, an empty name in the key, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise InputError(f"command line: {text}: write an override as block.key=value")
    given = parse(f"value: {value}", "command line", lines=False)
    if set(given.values) != {"value"}:
        raise InputError(f"command line: {text}: the value is not one YAML value; quote it")
    values = given.values["value"]
    for name in reversed(names):
        values = {name: values}
    # A block that a file opened stays that file's; one that only this override opens is the command line's.
    opened: dict[problem.Path, Origin] = {
        tuple(names[:depth]): Origin("command line") for depth in range(1, len(names))
    }
    origins = {(*names, *path[1:]): where for path, where in given.origins.items() if path}
    return Source(source.values, {**opened, **source.origins}, source.faults).under(
        Source(values, origins, given.faults)
    )


def parse(text: str, place: str, lines: bool = True) -> Source:
    """One YAML document whose root is a mapping (or nothing at all).

    Raises:
        InputError: no YAML, or a root of another kind.
    """
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        source = Source({}, {(): Origin(place)})
        if root is None or root.tag == "tag:yaml.org,2002:null":
            return source
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{place}: a config file is a mapping of blocks (model:, lora:, data: ...)")
        source.values = _Builder(loader, source, place, lines).mapping(root, ())
        return source
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Origin(place, mark.line + 1 if mark and lines else None)
        raise InputError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{place}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise InputError(f"{place}: nested too deeply, or an alias that holds itself") from error


@dataclass
class _Builder:
    """Values out of YAML nodes, noting the origin of each path on the way."""

    loader: Loader
    source: Source
    place: str
    lines: bool

    def value(self, node: yaml.Node, path: problem.Path) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            values = []
            for index, item in enumerate(node.value):
                self.source.origins[(*path, index)] = self.where(item)
                values.append(self.value(item, (*path, index)))
            return values
        return self.loader.construct_object(node, deep=True)

    def mapping(self, node: yaml.MappingNode, path: problem.Path) -> dict[str, Any]:
        first: dict[str, Origin] = {}
        for key, _ in node.value:
            where, name = self.where(key), str(key.value)
            if not isinstance(key, yaml.ScalarNode):
                self.source.faults.append((where, "a key must be a word"))
            elif name in first:
                again = problem.dotted((*path, name))
                self.source.faults.append((where, f"{again}: set twice, first at {first[name]}; remove one"))
            first.setdefault(name, where)
        self.loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        for key, item in node.value:
            name = str(key.value)
            self.source.origins[(*path, name)] = self.where(key)
            values[name] = self.value(item, (*path, name))
        return values

    def where(self, node: yaml.Node) -> Origin:
        return Origin(self.place, node.start_mark.line + 1 if self.lines else None)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, both unchanged: dictionaries merge key by key, all else is replaced."""
    both = dict(base)
    for key, value in over.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both
