"""The rounds of a captioned table: which clips were captioned together, what came of it, and what is open."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.prepare.work.workers import Worker
from shards.storage import Storage

_TO_BEGIN_S = 30.0  # that workers wait for the first one to begin a pass over all clips
_LOOK_S = 0.2


class Rounds:
    """Rounds below `folder` of `storage`, of clips below `media`, as one worker of a pass sees them.

    A round is a list of clips and the job that captions them. One that is open is gone on with, whoever began it.
    `captions` and `reasons` are what finished rounds say of files of the size that they still have. A pass that
    does all `anew` has a generation of its own, and looks at the rounds of that alone.
    """

    def __init__(self, storage: Storage, folder: str, media: Path, worker: Worker, anew: bool) -> None:
        self.captions: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self._storage = storage
        self._folder = folder
        self._media = media
        self._worker = worker
        self._anew = anew
        self._round = 0
        self._generation: int | None = None  # of this pass, once that is known; 0 for one that fills gaps
        self._latest = 0
        self.take_finished()

    @property
    def path(self) -> str:
        """The folder of the round to do now."""
        return f"{self._folder}/{self._round:03d}"

    @property
    def ours(self) -> bool:
        """Whether the round to do now is of this pass, and not one that fills gaps before all is done anew."""
        return not self._anew or self._generation is not None

    def take_finished(self) -> None:
        """Learn what came of rounds that are done."""
        while (result := self._read(f"{self.path}/result.json")) is not None:
            begun = self._read(f"{self.path}/clips.json")
            self._latest = max(self._latest, begun["generation"])
            if not self._anew or begun["generation"] == self._generation:
                same = {media for media, size in begun["clips"].items() if size == self._size(media)}
                captions = self._read(f"{self.path}/captions.json") or {}
                self.captions |= _of(captions, same)
                self.reasons |= _of(result["failures"], same)
            self._round += 1

    def open(self) -> list[str] | None:
        """The clips of the round that was begun and is not done, None where there is none."""
        begun = self._read(f"{self.path}/clips.json")
        if begun is None:
            return None
        if self._anew and self._generation is None and begun["generation"] > 0:
            self._generation = begun["generation"]
        return list(begun["clips"])

    def may_begin(self) -> bool:
        """Whether this worker may begin a round: one over all clips is begun by the first worker alone.

        The others wait a while for it: they cannot tell a pass that is over from one that is to come.
        """
        if self.ours:
            return True
        if self._worker.index > 0 and self._round > 0:
            until = time.monotonic() + _TO_BEGIN_S
            while self._read(f"{self.path}/clips.json") is None and time.monotonic() < until:
                time.sleep(_LOOK_S)
            return False
        self._generation = self._latest + 1
        return True

    def begin(self, clips: Sequence[str]) -> None:
        """Begin a round, unless another worker just did. Workers may disagree on its clips: the first one's hold."""
        sizes = {media: self._size(media) for media in clips}
        self._storage.create(
            f"{self.path}/clips.json", as_json({"generation": self._generation or 0, "clips": sizes})
        )

    def finish(self, captions: Mapping[str, str]) -> None:
        """Keep the captions of the open round; its job's result, which says that it is done, comes after."""
        self._storage.write(f"{self.path}/captions.json", as_json(captions))

    def _size(self, media: str) -> int:
        """Bytes of a clip, -1 for one that is not there."""
        try:
            # The table's folder need not be there yet, for a path to lead back out of it.
            return os.stat(os.path.normpath(self._media / media)).st_size
        except (OSError, ValueError):
            return -1

    def _read(self, path: str) -> Any:
        try:
            return json.loads(self._storage.read(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(
                f"{self._storage.name}/{path} is damaged ({error}): remove {self._folder} to begin anew"
            ) from error


def digest(value: Any) -> str:
    """16 hex digits of a value that JSON can hold."""
    return hashlib.sha256(as_json(value)).hexdigest()[:16]


def as_json(value: Any) -> bytes:
    """A value as it is written."""
    return json.dumps(value, ensure_ascii=False).encode()


def _of(texts: Mapping[str, str], media: set[str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if name in media}
