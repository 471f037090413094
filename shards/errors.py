"""The two ways this project refuses: a wrong input, and damaged bytes."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the file, the key, the value and what to do; the command line prints
    it as it is, without a traceback.
    """


class ShardError(RuntimeError):
    """The bytes of a shard are not what was written.

    Attributes: ``shard`` (path relative to the dataset), ``key`` of the sample (empty where the damage is not
    inside one sample), ``what`` differs, ``expected`` and ``found``; ``root`` of the dataset, where the message shall
    lead there ("": who catches it knows).
    """

    def __init__(
        self, shard: str, key: str, what: str, expected: object, found: object, root: str = ""
    ) -> None:
        # All five go to `args`, so the error survives pickling between processes.
        super().__init__(shard, key, what, expected, found)
        self.shard = shard
        self.key = key
        self.what = what
        self.expected = expected
        self.found = found
        self.root = root

    def __str__(self) -> str:
        sample = f" sample {self.key!r}:" if self.key else ""
        differs = f"{self.shard}:{sample} {self.what}: expected {self.expected}, found {self.found}"
        return f"{self.root}/{differs}; run `ltx-shards doctor {self.root}`" if self.root else differs


class MissingMember(ShardError):
    """One of the two members of a sample is not in its tar; those of the other samples may be."""


class DamagedSample(ShardError):
    """The bytes of one sample are there but wrong; those of the other samples may be good."""
