"""What captions depend on."""

from __future__ import annotations

from dataclasses import dataclass

from shards.errors import InputError
from shards.prepare.caption.captioner import DEFAULT_INSTRUCTION, check_model


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
    if options.at_server and options.use_8bit:
        raise InputError("--use-8bit is for a model that is loaded here, not for one of --endpoint")
    if options.video_to_server and not options.at_server:
        raise InputError("--endpoint-video needs --endpoint: the URL of the server")
    if options.model is not None and not options.at_server:
        check_model(options.model)
    for name, least in (("max_frames", 1), ("frame_pixels", 28 * 28), ("max_new_tokens", 1)):
        value = getattr(options, name)
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")
