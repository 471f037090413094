"""The clips of one unit: captioned in turn, and what was answered kept if the worker ends amid it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from shards.prepare.caption.asking import Answer
from shards.prepare.caption.captioner import CaptionError
from shards.prepare.caption.doubt import Doubt
from shards.storage import Storage

_KEEP_EVERY = 16  # answers
_MOST_LOST = 2

Answers = Callable[[Sequence[str]], Generator[Answer, None, None]]


class Kept(NamedTuple):
    """What is known of a unit amid it: captions, reasons of clips tried in vain, clips at which GPUs were lost."""

    captions: dict[str, str]
    refused: dict[str, str]
    lost: dict[str, int]


def caption_unit(
    answers: Answers,
    clips: Sequence[str],
    doubt: Doubt,
    storage: Storage,
    path: str,
    on_clip: Callable[[], None],
) -> dict[str, Any]:
    """The captions of clips by `answers`, and why others have none: {"captions": ..., "failures": ...}.

    What is answered is kept at `path` until the unit is done. Clips that a worker before this one tried in vain
    come last and say no more against the model, and one at which two workers lost their GPU is not tried again:
    so a few bad ones cannot keep anyone from the rest for good. Raises as `Doubt`.
    """
    kept = _kept(storage, path)
    failures = {media: kept.refused[media] for media, times in kept.lost.items() if times >= _MOST_LOST}
    known = frozenset(kept.refused)
    left = [media for media in clips if media not in kept.captions and media not in failures]
    left.sort(key=lambda media: media in known)
    for _ in range(len(clips) - len(left)):
        on_clip()
    try:
        with closing(answers(left)) as found:
            for count, (media, answer) in enumerate(zip(left, found, strict=True), start=1):
                on_clip()
                gone = isinstance(answer, CaptionError) and answer.gone
                if isinstance(answer, str):
                    kept.captions[media] = answer
                else:
                    failures[media] = answer.reason
                if gone and doubt.ends_at_one:
                    kept.lost[media] = kept.lost.get(media, 0) + 1
                if media in failures and (not gone or media in kept.lost):
                    kept.refused[media] = failures[media]
                if gone or media not in failures or media not in known:
                    doubt.note(media, answer)
                if count % _KEEP_EVERY == 0 and count < len(left):
                    _keep(storage, path, kept)
    except BaseException:
        _keep(storage, path, kept)
        raise
    return {
        "captions": {media: kept.captions[media] for media in clips if media in kept.captions},
        "failures": {media: failures[media] for media in clips if media in failures},
    }


def _keep(storage: Storage, path: str, kept: Kept) -> None:
    storage.write(path, json.dumps(kept._asdict(), ensure_ascii=False).encode())


def _kept(storage: Storage, path: str) -> Kept:
    try:
        return Kept(**json.loads(storage.read(path)))
    except (FileNotFoundError, ValueError, TypeError):  # damaged: it only saves work
        return Kept({}, {}, {})
