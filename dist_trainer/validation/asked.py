"""What is asked of the run while its model is looked at."""

from __future__ import annotations

import torch
import torch.distributed as torch_dist

from dist_trainer.stop import Requests, Wish


def asked(requests: Requests, device: torch.device) -> Wish:
    """The greatest wish of all ranks, alike on every rank; all ask together.

    One reduction: 512 ranks ask many times a minute.
    """
    wish = torch.tensor(int(requests.wish()), device=device)
    torch_dist.all_reduce(wish, torch_dist.ReduceOp.MAX)
    return Wish(int(wish))
