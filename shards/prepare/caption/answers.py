"""Clips in, captions out: frames are read ahead of the model, answers cleaned, and a model that fails is given up."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError
from shards.prepare.caption.captioner import DEFAULT_INSTRUCTION, Captioner, CaptionError
from shards.prepare.caption.cleaning import clean_caption, one_line
from shards.prepare.caption.sampling import Frames, sample_frames
from shards.prepare.media.video import ClipError
from shards.stream import stream

_FIRST_REFUSALS = 4
_LEAST_GONE = 8
_READ_AHEAD = 2

Answer = str | ClipError | CaptionError


@dataclass(frozen=True)
class CaptionOptions:
    """What captions depend on; other values make other captions, so a pass under them begins anew."""

    model: str | None = None  # None: the default model, or the only one of the server
    at_server: bool = False
    video_to_server: bool = False
    instruction: str = DEFAULT_INSTRUCTION
    fps: float = 3.0  # frames per second that the model sees
    max_frames: int = 64
    frame_pixels: int = 64 * 28 * 28  # of a frame, at most
    max_new_tokens: int = 200
    clean: bool = True
    use_8bit: bool = False


def check(options: CaptionOptions) -> None:
    """Raise `InputError` naming the first option that makes no sense."""
    if not 0 < options.fps <= 1000:
        raise InputError(f"--fps {options.fps:g}: give frames per second, above 0")
    if not options.instruction.strip():
        raise InputError("--instruction is empty: say what the model shall write")
    for name, least in (("max_frames", 1), ("frame_pixels", 28 * 28), ("max_new_tokens", 1)):
        value = getattr(options, name)
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")


def answers(
    captioner: Captioner, clips: Sequence[str], folder: Path, options: CaptionOptions
) -> Generator[Answer, None, None]:
    """The caption of each clip, in order, or why there is none."""

    def look(media: str) -> Frames | ClipError:
        try:
            return sample_frames(folder / media, options.fps, options.max_frames, options.frame_pixels)
        except ClipError as error:
            return error

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


class Doubt:
    """Whether it is the model or the server that is at fault, and not single clips."""

    def __init__(self, captioner: Captioner) -> None:
        self._label = captioner.label
        self._most_gone = max(_LEAST_GONE, 2 * captioner.at_once)
        self._answered = False
        self._refused = 0
        self._gone = 0

    def note(self, answer: Answer) -> None:
        """Take note of a clip's answer. Raises InputError once there is no sense in going on."""
        if isinstance(answer, str):
            self._answered, self._gone = True, 0
        elif isinstance(answer, CaptionError):
            self._refused += 1
            self._gone = self._gone + 1 if answer.gone else 0
            if not self._answered and self._refused == _FIRST_REFUSALS:
                raise InputError(
                    f"{self._label}: no caption for any of the first {self._refused} clips, the last time because: "
                    f"{answer.reason}"
                )
            if self._gone == self._most_gone:
                raise InputError(
                    f"{self._label}: gone, {self._gone} clips in a row failed, the last time because: "
                    f"{answer.reason}. What is done is kept: run the same command again."
                )
