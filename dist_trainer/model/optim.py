"""The optimizer: torch's own, made from the config."""

from __future__ import annotations

import torch

from dist_trainer.config import RunConfig


def make_optimizer(parameters: list[torch.nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """AdamW, or plain SGD (no momentum, for exactness checks), over float32 master weights."""
    settings = config.optimization
    if settings.optimizer_type == "sgd":
        return torch.optim.SGD(parameters, lr=settings.learning_rate)
    on_gpu = torch.cuda.is_available() and config.deepspeed.offload_optimizer == "none"
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=on_gpu,
    )
