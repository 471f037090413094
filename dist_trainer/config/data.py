"""What it learns from, and how much of it in a step: blocks `data` and `batching`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dist_trainer.config.block import Block, UserPath


class DataConfig(Block):
    """Block `data`."""

    preprocessed_data_root: UserPath = Field(
        default="",
        description="Folder or URL (s3://, gs://, az://, https://) that `ltx-shards encode` wrote. Required.",
    )
    num_dataloader_workers: int = Field(
        default=2,
        ge=0,
        description="Reader threads of each process, at least one. From a URL it fetches 32 samples at once.",
    )
    cache_dir: UserPath | None = Field(
        default=None,
        description="Folder on each node's own disk where samples are kept for the next epoch, for a dataset at a "
        "URL or on a slow file system. All processes of a node share it. null: nothing is kept.",
    )
    cache_gib: float = Field(
        default=64.0, gt=0, description="Most GiB in cache_dir; the samples unused for longest go first."
    )
    max_damaged_samples: int = Field(
        default=100,
        ge=0,
        description="Different samples that may be found damaged over the run's life; each is replaced by another "
        "of its size or a smaller one. One more stops the run, and 0 tolerates none.",
    )


class BatchingConfig(Block):
    """Block `batching`: what one optimizer step of the whole run trains, and how it is cut into packs."""

    samples_per_step: int | None = Field(
        default=None,
        gt=0,
        description="Samples in a step. null, with tokens_per_step null too: optimization.batch_size * "
        "gradient_accumulation_steps * processes, taken at first launch and kept from then on.",
    )
    tokens_per_step: int | None = Field(
        default=None, gt=0, description="Size a step by tokens instead; not together with samples_per_step."
    )
    mix: Literal["random", "similar"] = Field(
        default="random",
        description="random: a step's samples are an independent draw. similar: they are of nearly equal "
        "cost, which keeps many processes busy on small steps of mixed sizes.",
    )
    max_tokens_per_pack: int | None = Field(
        default=None,
        gt=0,
        description="The cap: most tokens that one process takes at once; memory grows with it, results do "
        "not change. null: twice the longest sample.",
    )
    loss_weighting: Literal["sample", "token"] = Field(
        default="sample",
        description="Mean over samples of each one's mean (sample), or over all tokens (token).",
    )
