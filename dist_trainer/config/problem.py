"""What is wrong with a configuration: one `Problem` a key, whoever found it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]


class Problem(NamedTuple):
    """One wrong key.

    `path` is the key from the root of the configuration. `value` is shown when `show` is true. `others` are
    keys the rule also looked at: where one of them is reported already, this problem is worth nothing. `meant` is the
    key that was probably meant.
    """

    path: Path
    message: str
    value: Any = None
    show: bool = False
    others: tuple[Path, ...] = ()
    meant: Path = ()

    def under(self, prefix: Path) -> Problem:
        """The same problem, seen from a block that holds this one at `prefix`."""
        return self._replace(path=prefix + self.path, meant=self.meant and prefix + self.meant)

    def __str__(self) -> str:
        shown = f" = {brief(self.value)}" if self.show else ""
        meant = f"; did you mean {dotted(self.meant)}?" if self.meant else ""
        return f"{dotted(self.path)}{shown}: {self.message}{meant}"


class RuleError(ValueError):
    """A rule of ours was broken; `problems` have paths relative to what was being validated."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


def dotted(path: Path) -> str:
    """`("lora", "target_modules", 0)` as a user writes it: `lora.target_modules.0`."""
    return ".".join(map(str, path))


def brief(value: Any) -> str:
    """A value short enough for one line of a message."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggestion(name: str, names: Sequence[str]) -> str:
    """`; did you mean ...?` with the nearest of `names`, or all of them where none is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; one of: {', '.join(sorted(names))}" if names else ""


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """pydantic's errors about `model` in our words."""
    return [problem for item in error.errors(include_url=False) for problem in _translate(item, model)]


def _translate(item: Mapping[str, Any], model: type[BaseModel]) -> Iterator[Problem]:
    path: Path = tuple(item["loc"])
    kind, context = item["type"], item.get("ctx", {})
    if isinstance(cause := context.get("error"), RuleError):
        yield from (problem.under(path) for problem in cause.problems)
    elif kind == "extra_forbidden":
        yield _unknown(path, model)
    elif kind == "missing":
        yield Problem(path, "required, but not set")
    else:
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if kind == "literal_error" and isinstance(item["input"], str):
            choices = re.findall(r"'([^']*)'", context["expected"])
            if near := difflib.get_close_matches(item["input"], choices, n=1):
                message += f"; did you mean {near[0]}?"
        yield Problem(path, message, item["input"], show=True)


def _unknown(path: Path, model: type[BaseModel]) -> Problem:
    *blocks, name = path
    owner: type[BaseModel] | None = model
    for block in blocks:
        owner = _block(owner, str(block)) if owner else None
    names = list(owner.model_fields) if owner else []
    if near := difflib.get_close_matches(str(name), names, n=1, cutoff=0.6):
        return Problem(path, "unknown key", meant=(*blocks, near[0]))
    # A right name in the wrong block is the commonest slip after a typo.
    for home in model.model_fields:
        if name in getattr(_block(model, home), "model_fields", ()):
            return Problem(path, "unknown key", meant=(home, name))
    return Problem(path, "unknown key" + suggestion(str(name), names))


def _block(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = model.model_fields.get(key)
    if field is None:
        return None
    kinds = get_args(field.annotation) or (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
