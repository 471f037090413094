"""Long videos for tests: scenes with hard cuts at known frames, turned, damaged, with pixels that are not square."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from shards.prepare.media.film import writing


def scene(number: int, frames: int, width: int, height: int) -> np.ndarray:
    """Coloured blocks that drift slowly to the right, uint8 [F,H,W,3]; another number is another picture."""
    blocks = np.random.default_rng(number).integers(20, 236, (4, 4, 3), dtype=np.uint8)
    picture = np.repeat(np.repeat(blocks, -(-height // 4), 0), -(-width // 4), 1)[:height, :width]
    return np.stack([np.roll(picture, frame // 4, axis=1) for frame in range(frames)])


def write_scenes(
    path: Path,
    lengths: Sequence[int],
    width: int = 64,
    height: int = 48,
    rate: Fraction = Fraction(24),
    first: int = 0,
) -> Path:
    """A video of scenes of these many frames, the pictures numbered from `first`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, rate, 10) as append:
        for number, length in enumerate(lengths, start=first):
            for frame in scene(number, length, width, height):
                append(frame)
    return path


def write_fades(path: Path, lengths: Sequence[int]) -> Path:
    """Scenes of these many frames and black ones, by turns."""
    with writing(path, Fraction(24), 10) as append:
        for number, length in enumerate(lengths):
            for frame in scene(number, length, 64, 48):
                append(frame if number % 2 == 0 else np.zeros_like(frame))
    return path


def write_wide_pixels(path: Path, frames: np.ndarray, pixel: Fraction) -> Path:
    """A video whose pixels are `pixel` times as wide as high."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_changing_size(path: Path, sizes: Sequence[tuple[int, int]], frames: int) -> Path:
    """An MPEG-TS recording of so many frames of each size, put together as a recorder does: end to end."""
    parts = []
    for number, (width, height) in enumerate(sizes):
        part = path.with_suffix(f".{number}.ts")
        write_scenes(part, [frames], width, height, first=number)
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path


def write_recording(path: Path, frames: np.ndarray, milliseconds: Sequence[int]) -> Path:
    """A WebM as browsers record: frames at these times, and a header that names the clock's rate, 1000."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=1000)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.bit_rate = 2_000_000
        for frame, time in zip(frames, milliseconds, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def turn(path: Path) -> Path:
    """Say in an MP4's header that it is to be shown a quarter turn clockwise, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    # 16.16 fixed point, 2.30 in the last column.
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def damage(path: Path, packet: int) -> Path:
    """Overwrite the packet of that number."""
    with av.open(str(path)) as container:
        found = [(entry.pos, entry.size) for entry in container.demux(video=0) if entry.size][packet]
    data = bytearray(path.read_bytes())
    data[found[0] : sum(found)] = b"\xff" * found[1]
    path.write_bytes(data)
    return path


def tree(folder: Path, leave: str = "") -> dict[str, bytes]:
    """Every file below a folder by its path, but for those of the folder `leave` at its top."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and (not leave or path.relative_to(folder).parts[0] != leave)
    }
