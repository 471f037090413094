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

_KEEP_EVERY = 4  # answers
_MOST_LOST = 2
_KILLED = "workers died while captioning it: see whether memory is short"

Answers = Callable[[Sequence[str]], Generator[Answer, None, None]]


class Kept(NamedTuple):
    """What is known of a unit amid it: captions, reasons of clips tried in vain, clips at which workers were lost."""

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
    careful: bool = False,
) -> dict[str, Any]:
    """The captions of clips by `answers`, and why others have none: {"captions": ..., "failures": ...}.

    What is answered is kept at `path` until the unit is done. Clips that a worker before this one tried in vain
    come last and say no more against the model, and one at which two workers lost their GPU or, where they were
    `careful`, were killed is not tried again: so a few bad ones cannot keep anyone from the rest for good. Raises as
    `Doubt`.
    """
    kept = _kept(storage, path)
    lost = [media for media, times in kept.lost.items() if times >= _MOST_LOST]
    failures = {media: kept.refused.get(media, _KILLED) for media in lost}
    known = kept.refused.keys() | kept.lost.keys()
    left = [media for media in clips if media not in kept.captions and media not in failures]
    left.sort(key=lambda media: media in known)
    for _ in range(len(clips) - len(left)):
        on_clip()
    at_risk = careful and doubt.ends_at_one
    try:
        with closing(answers(left)) as found:
            for count, media in enumerate(left):
                if at_risk or (count and count % _KEEP_EVERY == 0):
                    _keep(storage, path, kept, media if at_risk else None)
                answer = next(found)
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
    except BaseException:
        _keep(storage, path, kept)
        raise
    return {
        "captions": {media: kept.captions[media] for media in clips if media in kept.captions},
        "failures": {media: failures[media] for media in clips if media in failures},
    }


def _keep(storage: Storage, path: str, kept: Kept, now: str | None = None) -> None:
    """Write what is known; a worker that is killed at the clip `now` has said that it was."""
    if now is not None:
        kept = kept._replace(lost={**kept.lost, now: kept.lost.get(now, 0) + 1})
    storage.write(path, json.dumps(kept._asdict(), ensure_ascii=False).encode())


def _kept(storage: Storage, path: str) -> Kept:
    try:
        return Kept(**json.loads(storage.read(path)))
    except (FileNotFoundError, ValueError, TypeError):  # damaged: it only saves work
        return Kept({}, {}, {})
