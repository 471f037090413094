"""What a trial of the nodes brought to light, and how a run ends by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shards.errors import InputError

# From bad to worse. warning: the run goes on. failure: nobody can tell which node is to blame. node: this one is, and
# others are not. input: all nodes share it, and only the user can put it right.
Kind = Literal["warning", "failure", "node", "input"]


@dataclass(frozen=True)
class Finding:
    """One line for the user; `host`: the node to be left out when the job is queued again."""

    kind: Kind
    text: str
    host: str = ""


class PreflightFailed(RuntimeError):
    """The nodes are not fit to train on; the message names host, rank, what, and what to do."""


def error_of(findings: Sequence[Finding]) -> Exception:
    """The exception of findings that end a run: InputError where queueing the job again cannot help."""
    kind = "input" if any(finding.kind == "input" for finding in findings) else ""
    texts = [finding.text for finding in findings if not kind or finding.kind == kind]
    text = "\n  ".join(texts if len(texts) == 1 else [f"{len(texts)} findings of the preflight:", *texts])
    return InputError(text) if kind else PreflightFailed(f"preflight: {text}")
