"""Real datasets of random latents for tests, written the way the encoder writes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shards.dataset.info import DatasetInfo, Source, pack_embeds, write_info
from shards.dataset.manifest import Manifest, write_manifest
from shards.dataset.opened import Dataset, open_dataset
from shards.formats.meta import sample_json
from shards.formats.sample import payload
from shards.formats.tar import ShardWriter
from shards.geometry import Bucket, Scale
from shards.storage import Root

GRIDS = ((1, 4, 4), (2, 4, 3), (3, 2, 4), (1, 6, 2))
SCALE = Scale(4, 8)


def write_dataset(
    root: Root,
    samples: int = 8,
    *,
    channels: int = 4,
    grids: Sequence[tuple[int, int, int]] = GRIDS,
    references: Sequence[tuple[int, int, int] | None] = (None,),
    text_lengths: Sequence[int] = (3, 7, 5),
    text_width: int = 16,
    fps: Sequence[float] = (24.0, 25.0, 30.0),
    scale: Scale = SCALE,
    keys: Sequence[str] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 64 << 10,
    info: DatasetInfo | None = None,
    vae: Source | None = None,
    seed: int = 0,
) -> Dataset:
    """Write ``samples`` random samples under ``root`` and open them.

    Sample i takes entry ``i % len`` of ``grids`` (latent F, H, W), ``references`` (the same, or None),
    ``text_lengths`` and ``fps``. The same arguments give the same bytes. ``info`` replaces the dataset.json
    that would be made from ``channels``, ``text_width``, ``scale`` and ``vae``: training refuses another than its
    model's (`tests.support.models.tiny_source`).
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    names = keys or [f"clips/sample_{number:05d}" for number in range(samples)]
    null_embeds = noise(2, text_width)
    with ShardWriter(root, max_bytes=shard_bytes) as writer:
        for number in range(samples):
            grid, reference = grids[number % len(grids)], references[number % len(references)]
            tensors = {
                "latents": noise(channels, *grid),
                "prompt_embeds": noise(text_lengths[number % len(text_lengths)], text_width),
            }
            if reference is not None:
                tensors["reference_latents"] = noise(channels, *reference)
            frames, height, width = scale.pixels(grid)
            meta = sample_json(
                caption=f"caption {number}",
                source=f"{names[number]}.mp4",
                fps=fps[number % len(fps)],
                width=width,
                height=height,
                frames=frames,
                bucket=Bucket(width, height, frames),
            )
            writer.add(names[number], meta, payload(tensors))
        writer.finish_shard()
        manifest = Manifest.from_rows(writer.rows)
    write_info(
        root,
        info
        or DatasetInfo(
            channels=channels,
            text_width=text_width,
            scale=scale,
            vae=vae or Source("random", f"vae-{seed}"),
            text_encoder=Source("random", f"text-{seed}"),
            null_prompt_embeds=pack_embeds(null_embeds),
        ),
    )
    write_manifest(root, manifest)
    return open_dataset(root)
