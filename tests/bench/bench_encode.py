"""Speed of `ltx-shards encode`: two workers against one, and how much of decoding hides behind the VAE.

    python -m tests.bench.bench_encode --clips 48

On the CPU, a thread of computing to a worker, with the tiny model: only the ratios mean something. The workers are
the real command; counted is the second half of its units, when all have started and loaded the models. Decoding
and the VAE are then timed alone and together in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from shards.dataset.encoding import JOB
from shards.geometry import Bucket
from shards.prepare.encode.ahead import running_ahead
from shards.prepare.encode.assign import Rules
from shards.prepare.encode.cut import Decoded, decode
from shards.prepare.encode.latents import batches, encode_batch
from shards.prepare.encode.models import load_vae
from shards.prepare.encode.vae import vae_scale
from shards.prepare.tables.table import read_table
from tests.bench.bench_reader import measure
from tests.support.clips import write_ramp
from tests.support.models import tiny_model
from tests.support.runs import ROOT

BUCKET = Bucket(320, 192, 25)
WIDTH, HEIGHT, FRAMES = 640, 384, 49
ROWS = 2  # of a unit
SEED = 42


def write_clips(folder: Path, count: int) -> Path:
    """Clips of a few colours, and their table."""
    rows = []
    for number in range(count):
        name = f"clips/{number:04d}.mp4"
        if number < 7:
            write_ramp(folder / name, FRAMES, WIDTH, HEIGHT, number)
        else:
            shutil.copy(folder / f"clips/{number % 7:04d}.mp4", folder / name)
        rows.append({"caption": f"clip {number}", "media_path": name})
    table = folder / "clips.json"
    table.write_text(json.dumps(rows))
    return table


def clips_per_s(table: Path, out: Path, workers: int) -> float:
    """Of the command with so many workers, by when its units were complete."""
    command = [sys.executable, "-m", "shards", "encode", str(table), "--model", str(tiny_model())]
    command += ["--out", str(out), "--buckets", str(BUCKET), "--rows-per-shard", str(ROWS), "--device", "cpu"]
    command += ["--workers", str(workers), "--decode-threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    ends = sorted(path.stat().st_mtime for path in (out / JOB / "units").glob("*.json"))
    half = len(ends) // 2
    return ROWS * (len(ends) - half) / (ends[-1] - ends[half - 1])


def workers_table(folder: Path, clips: Path, count: int, repeats: int) -> Table:
    """Clips a second of one and of two workers, each with one thread that decodes."""
    table = Table(
        title=f"encode, {count} clips in units of {ROWS}, {os.cpu_count()} CPUs",
        caption=f"Best of {repeats}, which take turns. In one worker decoding already runs beside the VAE.",
    )
    for heading in ("workers", "clips/s", "ratio"):
        table.add_column(heading, justify="right")
    best = {1: 0.0, 2: 0.0}
    for repeat in range(repeats):
        for workers in best:
            rate = clips_per_s(clips, folder / f"out.{workers}.{repeat}", workers)
            best[workers] = max(best[workers], rate)
    for workers, rate in best.items():
        table.add_row(str(workers), f"{rate:.1f}", f"{rate / best[1]:.2f}")
    return table


def overlap_table(clips: Path, count: int, repeats: int) -> Table:
    """Decoding ahead in a thread against decoding and encoding one after the other."""
    vae = load_vae(tiny_model(), torch.float32)
    read = partial(decode, rules=Rules((BUCKET,), vae_scale(vae)), seed=SEED)
    rows = read_table(clips)

    def ahead() -> Iterator[Decoded]:
        with running_ahead(rows, read, threads=1) as parts:
            for _, part in parts:
                assert isinstance(part, Decoded)
                yield part

    def decode_all() -> None:
        for _ in ahead():
            pass

    def encode(samples: Iterator[Decoded]) -> None:
        for batch in batches(samples, 1):
            encode_batch(vae, batch, SEED, 1)

    held = list(ahead())
    work: dict[str, Callable[[], None]] = {
        "decoding alone": decode_all,
        "VAE alone": lambda: encode(iter(held)),
        "both": lambda: encode(ahead()),
    }
    took = measure(work, repeats)
    (decoding, decoding_cpu), (encoding, encoding_cpu), (both, _) = took.values()
    hidden = (decoding + encoding - both) / min(decoding, encoding)
    least = max(decoding, encoding, (decoding_cpu + encoding_cpu) / (os.cpu_count() or 1))
    table = Table(
        title=f"One worker, one clip decoded at a time, {count} clips, {os.cpu_count()} CPUs",
        caption=f"{100 * hidden:.0f} % of the shorter of both is hidden behind the longer one; together they take "
        f"{both / least:.2f} times the least that the longer one and the CPUs allow. Best of {repeats}.",
    )
    for heading in ("work", "s", "CPU s", "clips/s"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for name, (wall, cpu) in took.items():
        table.add_row(name, f"{wall:.2f}", f"{cpu:.2f}", f"{count / wall:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=48, help="clips to encode")
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many turns counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        clips = write_clips(Path(name), arguments.clips)
        Console().print(workers_table(Path(name), clips, arguments.clips, arguments.repeats))
        Console().print(overlap_table(clips, arguments.clips, arguments.repeats))


if __name__ == "__main__":
    main()
