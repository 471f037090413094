"""The clips of one unit: captioned in turn, and what was answered kept if the worker ends amid it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from shards.prepare.caption.asking import Answer
from shards.prepare.caption.captioner import CaptionError
from shards.prepare.caption.doubt import Doubt
from shards.storage import Storage

_KEEP_EVERY = 16  # answers


def caption_unit(
    answers: Callable[[Sequence[str]], Generator[Answer, None, None]],
    clips: Sequence[str],
    doubt: Doubt,
    storage: Storage,
    path: str,
    on_clip: Callable[[], None],
) -> dict[str, Any]:
    """The captions of clips by `answers`, and why others have none: {"captions": ..., "failures": ...}.

    What is answered is kept at `path` until the unit is done. Clips that a worker before this one tried in vain
    come last and say no more against the model, so that a few bad ones cannot keep it from the rest for good.
    Raises as `Doubt`.
    """
    kept = _kept(storage, path)
    captions, refused = dict(kept["captions"]), dict(kept["failures"])
    failures: dict[str, str] = {}
    left = sorted((media for media in clips if media not in captions), key=lambda media: media in refused)
    for _ in range(len(clips) - len(left)):
        on_clip()
    known = frozenset(refused)
    try:
        with closing(answers(left)) as found:
            for count, (media, answer) in enumerate(zip(left, found, strict=True), start=1):
                on_clip()
                gone = isinstance(answer, CaptionError) and answer.gone
                if isinstance(answer, str):
                    captions[media] = answer
                else:
                    failures[media] = answer.reason
                    refused.update({} if gone else {media: answer.reason})
                if gone or isinstance(answer, str) or media not in known:
                    doubt.note(media, answer)
                if count % _KEEP_EVERY == 0 and count < len(left):
                    _keep(storage, path, captions, refused)
    except BaseException:
        _keep(storage, path, captions, refused)
        raise
    return {
        "captions": {media: captions[media] for media in clips if media in captions},
        "failures": {media: failures[media] for media in clips if media in failures},
    }


def _keep(storage: Storage, path: str, captions: dict[str, str], failures: dict[str, str]) -> None:
    values = {"captions": captions, "failures": failures}
    storage.write(path, json.dumps(values, ensure_ascii=False).encode())


def _kept(storage: Storage, path: str) -> dict[str, dict[str, str]]:
    try:
        return dict(json.loads(storage.read(path)))
    except (FileNotFoundError, ValueError):  # damaged: it only saves work
        return {"captions": {}, "failures": {}}
