"""What can be wrong with a dataset: the kinds, how bad each is, and the count of each that was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]

EXAMPLES = 5


class Kind(NamedTuple):
    """`error`: training would stop, learn garbage or leave samples out. `meaning` is one line for the user."""

    severity: Severity
    meaning: str


KINDS: dict[str, Kind] = {
    "description": Kind("error", "dataset.json does not fit the shards"),
    "manifest": Kind("error", "manifest.parquet cannot be read"),
    "shard": Kind("error", "the manifest names a shard that is not there"),
    "row": Kind("error", "the manifest has a row, its shard no such sample"),
    "stray": Kind("error", "a shard has a sample, the manifest no row for it: it is not trained"),
    "unreadable": Kind("error", "a file or an object cannot be read"),
    "cut": Kind("error", "the shard ends before the sample does"),
    "checksum": Kind("error", "the bytes are not those of the manifest's checksum"),
    "stale": Kind(
        "error", "no sample of the shard has its checksum or its place: written again, or another dataset's"
    ),
    "place": Kind("error", "the sample lies elsewhere in its shard than its row says"),
    "shape": Kind("error", "the tensors have other sizes than the manifest says"),
    "rate": Kind("error", "the manifest has another fps than the sample's json"),
    "id": Kind("error", "the manifest's id is not the hash of the key"),
    "members": Kind("error", "the json or the safetensors member is missing"),
    "name": Kind("error", "the sample's name could not be a file's"),
    "tensors": Kind("error", "the safetensors member does not hold the tensors of a sample"),
    "model": Kind("error", "channels or text width are not those of dataset.json"),
    "json": Kind("error", "the json member cannot be read"),
    "nan": Kind("error", "numbers that are not finite"),
    "constant": Kind("error", "a tensor holds one value only"),
    "text": Kind("error", "no text token at all"),
    "reference size": Kind("error", "the reference's sides are no integer fractions of the target's"),
    "reference copy": Kind("error", "the reference is the target itself"),
    "key": Kind("error", "the key is there twice"),
    "structure": Kind("warning", "the shard is not a whole tar: other readers stop there"),
    "caption": Kind("warning", "no caption in the json"),
    "text limit": Kind("warning", "as many text tokens as the encoder takes: the caption was probably cut"),
    "still": Kind("warning", "a video whose latent frames are all equal"),
    "blank": Kind("warning", "a latent frame that holds one value only"),
    "some references": Kind("warning", "no reference, while other samples have one: IC-LoRA would stop here"),
    "copy": Kind("warning", "the same tensors under another key"),
    "same latents": Kind("warning", "the same latents under another key, with another text"),
    "same clip": Kind("warning", "the same part of the same file under another key"),
    "odd rate": Kind("warning", "a video's fps is below 1, above 240, or over four times off the usual"),
    "dtype": Kind("warning", "another number format than most samples"),
    "bucket": Kind("warning", "the json names another size than the latents have"),
    "null": Kind("warning", "dataset.json has no embedding of the empty caption"),
    "fingerprint": Kind("warning", "dataset.json does not say which model the samples are from"),
}


# What no other manifest cures.
UNMENDABLE = ("description", "unreadable")


class Example(NamedTuple):
    """One place where a kind was found; `shard` and `key` are empty where there is none."""

    shard: str
    key: str
    detail: str


@dataclass
class Finding:
    """How often a kind was found, and the first few places."""

    kind: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        """Of its kind."""
        return KINDS[self.kind].severity


class Findings:
    """Counts by kind; takes no more memory for more findings."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def add(self, kind: str, shard: str = "", key: str = "", detail: str = "") -> None:
        """Count one, and keep where it is if it is among the first."""
        finding = self._found.setdefault(kind, Finding(kind))
        finding.count += 1
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(Example(shard, key, detail))

    def count(self, kind: str, more: int) -> None:
        """Count so many more of a kind that has its examples."""
        if more > 0:
            self._found[kind].count += more

    def of(self, kind: str) -> Finding:
        """One kind, its count 0 where it was not found."""
        return self._found.get(kind, Finding(kind))

    def listed(self) -> list[Finding]:
        """All that were found, errors first, in the order of ``KINDS``."""
        order = sorted(KINDS, key=lambda kind: KINDS[kind].severity)
        return [self._found[kind] for kind in order if kind in self._found]
