"""What is asked of the run while its model is looked at."""

from __future__ import annotations

import torch
import torch.distributed as torch_dist

from dist_trainer.stop import Requests, Wish


def asked(requests: Requests, device: torch.device) -> Wish:
    """The greatest wish of all ranks, alike on every rank; all ask together.

    One reduction: 512 ranks ask many times a minute.
    """
    own = max(requests.wish(), Wish.COME_BACK if requests.is_late else Wish.NONE)
    wish = torch.tensor(int(own), device=device)
    torch_dist.all_reduce(wish, torch_dist.ReduceOp.MAX)
    return Wish(int(wish))
