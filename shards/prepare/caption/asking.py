"""Clips in, captions out: frames are read ahead of the model, and its answers cleaned."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

from shards.prepare.caption.captioner import Captioner, CaptionError
from shards.prepare.caption.cleaning import clean_caption, one_line
from shards.prepare.caption.options import CaptionOptions
from shards.prepare.caption.sampling import Frames, sample_frames
from shards.prepare.failures import reason_for
from shards.prepare.media.clip_error import ClipError
from shards.prepare.work.trial import deadly
from shards.stream import stream

_READ_AHEAD = 2
_PATIENCE_S = 1800.0  # for the frames of one clip

Answer = str | ClipError | CaptionError


def ask(
    captioner: Captioner,
    clips: Sequence[str],
    folder: Path,
    options: CaptionOptions,
    killers: Mapping[str, str] = {},
) -> Generator[Answer, None, None]:
    """The caption of each clip, in order, or why there is none. `killers` are not looked at, see `find_killers`."""

    def look(media: str) -> Frames | ClipError:
        if media in killers:
            return ClipError(folder / media, killers[media])
        try:
            return _frames(folder, options, media)
        except Exception as error:
            # A file of a kind that nobody thought of costs its own caption, not a worker.
            return ClipError(folder / media, reason_for(error))

    def describe(clip: Frames | ClipError) -> Answer:
        if isinstance(clip, ClipError):
            return clip
        try:
            answer = captioner.caption(clip)
        except CaptionError as error:
            return error
        text = clean_caption(answer) if options.clean else one_line(answer)
        return text or CaptionError("the model's answer is empty")

    if captioner.at_once == 1:
        with stream(clips, look, depth=_READ_AHEAD, name="look", threads=_READ_AHEAD) as looked:
            yield from map(describe, looked)
        return
    many = captioner.at_once
    # Further ahead than there are threads: one slow answer must not keep the others waiting.
    with stream(clips, lambda media: describe(look(media)), 4 * many, "caption", threads=many) as described:
        yield from described


def find_killers(clips: Sequence[str], folder: Path, options: CaptionOptions) -> dict[str, str]:
    """The clips that kill a process that reads them, each with how: they are read in processes of their own."""
    return {
        clips[number]: how
        for number, how in deadly(partial(_frames, folder, options), clips, _PATIENCE_S).items()
    }


def _frames(folder: Path, options: CaptionOptions, media: str) -> Frames:
    return sample_frames(folder / media, options.fps, options.max_frames, options.frame_pixels)
