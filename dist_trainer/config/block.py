"""The base of every block of the configuration."""

from __future__ import annotations

import os
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from dist_trainer.config.problem import RuleError, problems_of


def _expand(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path cannot hold the character \\0")
    # Only the home folder: a hub id or an object store's URL must stay as it is written.
    return os.path.expanduser(path)


UserPath = Annotated[str, AfterValidator(_expand)]
"""A path, hub id or URL as the user wrote it, with `~` expanded."""

_Params = TypeVar("_Params", bound=BaseModel)


class Block(BaseModel):
    """Unknown keys refused, immutable, no infinities, and `true` is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name:
            kind = cls.model_fields[info.field_name].annotation
            if set(get_args(kind) or (kind,)) <= {int, float, type(None)}:
                raise ValueError("should be a number")
        return value


def parse_params(model: type[_Params], params: dict[str, Any]) -> _Params:
    """A free dictionary read as the typed block that its mode asks for.

    Raises:
        RuleError: a key or value `model` refuses, with paths relative to `params`.
    """
    try:
        return model.model_validate(params)
    except ValidationError as error:
        raise RuleError(problems_of(error, model)) from error
