"""Where the scenes of a long video are: PySceneDetect's detectors over frames numbered as they are decoded."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shards.errors import InputError
from shards.prepare.media.clip_error import ClipError
from shards.prepare.media.film import Film, reading

if TYPE_CHECKING:
    import av
    import numpy as np
    from scenedetect.detector import SceneDetector

DETECTORS = ("content", "adaptive", "threshold", "histogram", "hash")
_WIDTH = 256  # at which frames are compared; PySceneDetect's thresholds are meant for about this
# A scene whose own rate is further from the file's than this gets its own: recordings of variable rate.
_VARIABLE_RATE = 0.05


class Length(NamedTuple):
    """A stretch of video, in frames or in seconds; the other is None."""

    frames: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str, flag: str) -> Length:
        """Read "17" (frames), "2.5s", or "HH:MM:SS" with or without a fraction. Raises InputError naming `flag`."""
        text = text.strip()
        if re.fullmatch(r"\d+", text):
            return cls(frames=int(text))
        if re.fullmatch(r"\d+(\.\d+)?s", text):
            return cls(seconds=float(text[:-1]))
        if match := re.fullmatch(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)", text):
            hours, minutes, seconds = match.groups()
            return cls(seconds=3600 * int(hours) + 60 * int(minutes) + float(seconds))
        raise InputError(f"{flag} {text!r}: give frames as 17, seconds as 2.5s, or HH:MM:SS")

    def in_frames(self, rate: Fraction) -> int:
        """Frames at `rate` frames per second, rounded."""
        return self.frames if self.frames is not None else round((self.seconds or 0.0) * rate)


NOTHING = Length(frames=0)


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are found; None is the detector's own default.

    `threshold` means what the detector takes it for: difference of colours 0 to 255 (content: 27), ratio to the
    neighbours' (adaptive: 3), brightness 0 to 255 below which a fade is (threshold: 12), difference 0 to 1
    (histogram: 0.2, hash: 0.35). `min_scene_length` is in frames; cuts that follow closer make no scene.
    """

    detector: str = "content"
    threshold: float | None = None
    luma_only: bool = False  # content, adaptive
    adaptive_window: int | None = None  # frames before and after (adaptive)
    fade_bias: float | None = None  # -1 cuts where black begins, 1 where it ends (threshold)
    min_scene_length: int | None = None
    frame_skip: int = 0  # frames passed over between two that are looked at
    downscale: int | None = None  # sides of the frames looked at are this many times smaller
    skip_start: Length = NOTHING
    skip_end: Length = NOTHING
    filter_shorter_than: Length = NOTHING
    max_scenes: int | None = None


class Scene(NamedTuple):
    """Frames `first` to `end` (not included) of a video; `start_s` and `end_s` are seconds from its first frame."""

    first: int
    end: int
    start_s: float
    end_s: float

    @property
    def frames(self) -> int:
        """How many."""
        return self.end - self.first

    def rate(self, film: Fraction) -> Fraction:
        """Frames per second: the whole video's, unless its rate varies and this scene's is another."""
        if self.frames < 2 or self.end_s <= self.start_s:
            return film
        own = Fraction(self.frames / (self.end_s - self.start_s))
        return film if abs(own / film - 1) <= _VARIABLE_RATE else own.limit_denominator(1001)


class Found(NamedTuple):
    """Scenes to keep, how many were left out by reason, and what stopped the reading early, if anything did."""

    scenes: list[Scene]
    left_out: dict[str, int]
    damage: str | None


def check(options: SceneOptions) -> None:
    """Raise `InputError` naming the first option that makes no sense."""
    if options.detector not in DETECTORS:
        raise InputError(f"--detector {options.detector!r} is not known: use {', '.join(DETECTORS)}")
    meant_for = {
        "luma_only": ("content", "adaptive"),
        "adaptive_window": ("adaptive",),
        "fade_bias": ("threshold",),
    }
    for name, detectors in meant_for.items():
        if getattr(options, name) not in (None, False) and options.detector not in detectors:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} is for --detector {' or '.join(detectors)}, not {options.detector}")
    most = {"histogram": 1.0, "hash": 1.0, "content": 255.0, "threshold": 255.0}.get(options.detector)
    if options.threshold is not None and not 0 <= options.threshold <= (most or float("inf")):
        upper = f" and at most {most:g}" if most else ""
        raise InputError(f"--threshold {options.threshold:g}: for {options.detector} it is at least 0{upper}")
    if options.fade_bias is not None and not -1 <= options.fade_bias <= 1:
        raise InputError(f"--fade-bias {options.fade_bias:g} must be between -1 and 1")
    for name, least in (
        ("adaptive_window", 1),
        ("downscale", 1),
        ("max_scenes", 1),
        ("frame_skip", 0),
        ("min_scene_length", 0),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")


def find_scenes(
    path: Path, options: SceneOptions, on_frame: Callable[[int, int], None] = lambda done, total: None
) -> Found:
    """The scenes of a video, in order; a video without a cut is one scene.

    Every frame is decoded once, none is kept. A video that breaks off has its scenes up to there. `on_frame`
    is told (done, frames by the header). Raises `ClipError` where nothing can be read.
    """
    with reading(path) as film:
        times, cuts, damage = _cuts(film, options, on_frame)
        first = options.skip_start.in_frames(film.rate)
        end = len(times) - options.skip_end.in_frames(film.rate)
        shortest = options.filter_shorter_than.in_frames(film.rate)
        if first >= end:
            raise ClipError(path, f"{len(times)} frames, nothing is left after skipping its start and end")
        bounds = [first, *(cut for cut in cuts if first < cut < end), end]
        seconds = _seconds(times, film.rate)
    scenes = [Scene(begin, stop, seconds(begin), seconds(stop)) for begin, stop in pairwise(bounds)]
    long = [scene for scene in scenes if scene.frames >= shortest]
    kept = long[: options.max_scenes]
    left_out = {
        f"shorter than {shortest} frames": len(scenes) - len(long),
        f"after the first {options.max_scenes}": len(long) - len(kept),
    }
    return Found(kept, {reason: count for reason, count in left_out.items() if count}, damage)


def _cuts(
    film: Film, options: SceneOptions, on_frame: Callable[[int, int], None]
) -> tuple[array[float], list[int], str | None]:
    """Times of all frames (NaN where the file does not say), numbers of frames at which a scene begins, damage."""
    from scenedetect.common import FrameTimecode

    detector = _detector(options)
    first = options.skip_start.in_frames(film.rate)
    times: array[float] = array("d")
    cuts: set[int] = set()
    position = FrameTimecode(0, film.rate)
    damage = None
    try:
        for number, frame in enumerate(film.frames):
            times.append(float("nan") if frame.time is None else frame.time)
            on_frame(number + 1, film.length)
            if number < first or (number - first) % (options.frame_skip + 1):
                continue
            # Numbers of frames and not timestamps: these may repeat or be absent.
            position = FrameTimecode(number, film.rate)
            cuts.update(cut.frame_num for cut in detector.process_frame(position, _small(frame, options)))
    except ClipError as error:
        if not times:
            raise
        damage = error.reason
    cuts.update(cut.frame_num for cut in detector.post_process(position))
    return times, sorted(cuts), damage


def _detector(options: SceneOptions) -> SceneDetector:
    from scenedetect import detectors

    kinds: dict[str, Any] = {
        "content": detectors.ContentDetector,
        "adaptive": detectors.AdaptiveDetector,
        "threshold": detectors.ThresholdDetector,
        "histogram": detectors.HistogramDetector,
        "hash": detectors.HashDetector,
    }
    given = {
        "adaptive_threshold" if options.detector == "adaptive" else "threshold": options.threshold,
        "luma_only": options.luma_only or None,
        "window_width": options.adaptive_window,
        "fade_bias": options.fade_bias,
        "min_scene_len": options.min_scene_length,
    }
    return kinds[options.detector](**{name: value for name, value in given.items() if value is not None})


def _small(frame: av.VideoFrame, options: SceneOptions) -> np.ndarray:
    """Blue, green, red: uint8 [h,w,3], at the size that is looked at."""
    factor = options.downscale or max(1.0, frame.width / _WIDTH)
    width, height = (max(1, round(side / factor)) for side in (frame.width, frame.height))
    return frame.to_ndarray(width=width, height=height, format="bgr24", interpolation="BILINEAR")


def _seconds(times: array[float], rate: Fraction) -> Callable[[int], float]:
    """Seconds from the first frame at which a frame begins; for the number after the last, at which it ends."""
    known = all(before < after for before, after in pairwise(times))

    def at(number: int) -> float:
        if not known:
            return float(number / rate)
        if number < len(times):
            return times[number] - times[0]
        return times[-1] - times[0] + float(1 / rate)

    return at
