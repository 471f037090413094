"""The engine: DeepSpeed behind five verbs. This is the one file that imports deepspeed.

Parameters and optimizer state are seen from outside as *slices*: rank r owns elements [start, stop) of a flattened
parameter. Stages 0 to 3 cut differently; loading, saving and exporting only speak of slices.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Said before deepspeed looks for itself, and warns.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.runtime import bf16_optimizer
from deepspeed.utils import set_z3_leaf_module
from pydantic import ValidationError

from dist_trainer.checkpoints.checkpoint import MASTER
from dist_trainer.model.clock import Clock
from dist_trainer.world import World
from shards.errors import InputError

# gloo needs no shared-memory op; without this line DeepSpeed compiles one for over a minute at first start.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# DeepSpeed calls collectives by names torch is about to change; a user can do nothing about that.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
# Its barriers do not name a device: each rank has chosen its own before (dist_trainer.dist).
warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current context")
# It prints the memory of rank 0 eight times as it starts in bf16.
bf16_optimizer.see_memory_usage = lambda *words, **settings: None


_AHEAD = 50_000_000  # parameters; DeepSpeed's own


@dataclass(frozen=True)
class Slice:
    """The part of one trainable parameter that this rank owns: elements [start, stop) of it flattened."""

    name: str
    start: int
    stop: int


def check_settings(ds_config: dict[str, Any]) -> None:
    """Raise InputError, naming `deepspeed.config`, for settings that DeepSpeed does not accept."""
    try:
        deepspeed.DeepSpeedConfig(ds_config)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        key = ".".join(map(str, found["loc"]))
        raise InputError(
            f"deepspeed.config: {key} = {found['input']!r}: DeepSpeed refuses it: {found['msg']}"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"deepspeed.config: DeepSpeed refuses it: {type(error).__name__}: {reason}"
        ) from error


def sharded_construction(ds_config: dict[str, Any]) -> contextlib.AbstractContextManager:
    """Within it, every parameter of a module built is cut over the ranks at once (stage 3), never whole anywhere."""
    if ds_config["zero_optimization"]["stage"] < 3:
        return contextlib.nullcontext()
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed.zero.Init(config_dict_or_path=ds_config)


def fill(parameter: Any, read: Callable[[int, int], torch.Tensor], rank: int) -> None:
    """Set a parameter from what `read` gives: elements [start, stop) of it, flat; only those this rank keeps."""
    if not hasattr(parameter, "ds_tensor"):
        parameter.data.copy_(read(0, parameter.numel()).view(parameter.shape))
        return
    part = parameter.ds_tensor
    start = min(rank * part.ds_numel, parameter.ds_numel)
    stop = min(start + part.ds_numel, parameter.ds_numel)
    if stop > start:
        part.data[: stop - start].copy_(read(start, stop))


class Engine:
    """A model in training: forward, backward, step, and the slices of its state."""

    def __init__(
        self,
        model: torch.nn.Module,
        make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        ds_config: dict[str, Any],
        world: World,
        blocks: Sequence[torch.nn.Module],
    ) -> None:
        """Wrap `model` (built under `sharded_construction`); only parameters with requires_grad are trained.

        `blocks`: its modules, in the order in which they are called, whose weights stage 3 is to bring in one piece.
        """
        self.world = world
        self.stage: int = ds_config["zero_optimization"]["stage"]
        if self.stage == 3:
            ds_config = _in_pieces(model, blocks, ds_config)
        self._trainable: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(list(self._trainable.values())),
            model_parameters=list(self._trainable.values()),
            config=ds_config,
        )
        self.clock = Clock(world.device)
        if self.stage == 3:
            coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
            coordinator.fetch_sub_module = self.clock.without(coordinator.fetch_sub_module)

    def forward(self, *inputs: Any) -> torch.Tensor:
        """The packed forward of the model."""
        with self.clock.running():
            return self._engine(*inputs)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it, `forward` is for looking only: no gradients, no dropout. All ranks enter and leave together."""
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._engine.train()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Back-propagate one micro-step; `last` says that it is the step's last. Every rank must agree on it.

        DeepSpeed averages gradients over ranks: a loss that is this rank's share of the step's mean is to be
        multiplied by the number of ranks first. A loss that is not finite makes every gradient NaN.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        # An infinite loss may have finite gradients. 0 * loss is 0, or NaN: no step then, and no wait for the device.
        self._engine.backward(loss * (1 + 0 * loss.detach()))
        if not last:
            self._engine.step()

    def step(self, learning_rate: float) -> float:
        """Clip, update the weights at `learning_rate`, clear gradients. Returns the gradient norm before clipping.

        Where the norm is not finite, on all ranks alike, weights and optimizer stay as they were.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if not self._is_plain:
            # DeepSpeed's optimizers look at the norm themselves, and leave the update out.
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm())
            if not math.isfinite(norm):
                # With optimizer offload, stages 1 and 2 keep the sums of the step left out, to add the next one to.
                getattr(self._engine.optimizer, "averaged_gradients", {}).clear()
            return norm
        norm = self._plain_norm()
        if not math.isfinite(norm):
            # To DeepSpeed it is then a micro-step, after which there is no update.
            self._engine.set_gradient_accumulation_boundary(False)
            self._engine.zero_grad()
        self._engine.step()
        return norm

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shape of every trainable parameter, by name."""
        return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self._trainable.items()}

    def slices(self) -> list[Slice]:
        """What this rank owns of the trainable parameters; over all ranks it covers each of them exactly once."""
        replica = self._is_plain and not self.world.is_main
        return [] if replica else self._held()

    def read(self, piece: Slice) -> dict[str, torch.Tensor]:
        """The float32 master weights (`master`) and the optimizer's moments of a slice, flat, on the CPU."""
        master, state, offset = self._locate(piece)
        length = piece.stop - piece.start
        found = {MASTER: master.detach().reshape(-1)[offset : offset + length]}
        for key, value in state.items():
            if key != "step" and torch.is_tensor(value) and value.numel() == master.numel():
                found[key] = value.reshape(-1)[offset : offset + length]
        return {key: value.detach().to("cpu", torch.float32, copy=True) for key, value in found.items()}

    def masters(self) -> dict[Slice, torch.Tensor]:
        """The float32 master weights of all slices this rank holds, flat: the weights themselves, where they lie."""
        found = {}
        for piece in self._held():
            master, _, offset = self._locate(piece)
            found[piece] = master.detach().reshape(-1)[offset : offset + piece.stop - piece.start]
        return found

    def restore(self, load: Callable[[Slice], dict[str, torch.Tensor]], steps: int) -> None:
        """Set the slices this rank holds from `load` and the optimizer's count of steps; the opposite of `read`.

        The model computes with them after `publish`.
        """
        self._create_optimizer_state(steps)
        for piece in self._held():
            master, state, offset = self._locate(piece)
            length = piece.stop - piece.start
            for key, value in load(piece).items():
                target = master.data if key == MASTER else state[key]
                target.view(-1)[offset : offset + length].copy_(value)

    def reserve(self) -> None:
        """Give the optimizer its memory before its first step: what is looked at before has no more room than later."""
        self._create_optimizer_state(0)

    def publish(self) -> None:
        """Bring the weights the model computes with in line with the master weights. All ranks do it together."""
        optimizer = self._engine.optimizer
        if self.stage == 3:
            # Looking at the model may leave weights gathered that a training step would have used again, and let go.
            optimizer.parameter_offload.partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        elif not self._is_plain:
            optimizer.update_lp_params()

    @property
    def _is_plain(self) -> bool:
        return isinstance(self._engine.optimizer, torch.optim.Optimizer)

    def _plain_norm(self) -> float:
        # Stage 0 in float32 has no ZeRO optimizer and records no norm: gradients are whole and already averaged.
        grads = [p.grad for p in self._trainable.values() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.float()) for g in grads])
        return float(torch.linalg.vector_norm(norms))

    def _inner(self) -> torch.optim.Optimizer:
        return self._engine.optimizer if self._is_plain else self._engine.optimizer.optimizer

    def _held(self) -> list[Slice]:
        held = []
        for name, parameter in self._trainable.items():
            start, length = self._extent(parameter)
            if length:
                held.append(Slice(name, start, start + length))
        return held

    def _extent(self, parameter: Any) -> tuple[int, int]:
        """Start and length of the part of a parameter whose optimizer state this rank holds."""
        if self.stage == 3:
            part = parameter.ds_tensor.ds_numel
            start = min(self.world.rank * part, parameter.ds_numel)
            return start, min(part, parameter.ds_numel - start)
        if self._is_plain:
            return 0, parameter.numel()
        if parameter._hp_mapping is None:
            return 0, 0
        fragment = parameter._hp_mapping.lp_fragment_address
        return fragment.start, fragment.numel

    def _locate(self, piece: Slice) -> tuple[torch.Tensor, dict[str, Any], int]:
        """The tensor that holds a slice's master weights, its optimizer state, and the slice's offset in it."""
        parameter = self._trainable[piece.name]
        inner = self._inner()
        if self.stage == 3:
            zero = self._engine.optimizer
            group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
            flat = zero.fp32_partitioned_groups_flat[group]
            return flat, inner.state[flat], offset
        if self._is_plain:
            return parameter, inner.state[parameter], 0
        mapping = parameter._hp_mapping
        flat = next(flat for flat in self._flat_masters() if _within(mapping.hp_fragment, flat))
        return flat, inner.state[flat], mapping.hp_fragment_address.start

    def _flat_masters(self) -> list[torch.Tensor]:
        optimizer = self._engine.optimizer
        if self.stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        if self._is_plain:
            return list(self._trainable.values())
        if hasattr(optimizer, "single_partition_of_fp32_groups"):
            return list(optimizer.single_partition_of_fp32_groups)
        return list(optimizer.fp32_groups_flat_partition)

    def _create_optimizer_state(self, steps: int) -> None:
        # By itself torch creates an optimizer's state at its first step.
        inner = self._inner()
        if not isinstance(inner, torch.optim.AdamW):
            return
        on_device = bool(inner.defaults.get("fused") or inner.defaults.get("capturable"))
        for flat in self._flat_masters():
            inner.state[flat] = {
                "step": torch.tensor(float(steps), device=flat.device if on_device else "cpu"),
                "exp_avg": torch.zeros_like(flat.data),
                "exp_avg_sq": torch.zeros_like(flat.data),
            }


def _in_pieces(
    model: torch.nn.Module, blocks: Sequence[torch.nn.Module], ds_config: dict[str, Any]
) -> dict[str, Any]:
    """Have DeepSpeed hook blocks as a whole: a hook costs the host time, and a block has thirty modules.

    It takes a block's gradients once those of the block's inputs are there. Where no input has one, that is before the
    block's own are there: the first block that is trained is left out, unless all that comes before is trained too.
    Returns the config with room to fetch a block while the one before is computed. A block is let go of when it is
    computed: looking ahead for whether it is needed soon, DeepSpeed errs about blocks, and keeps most of a model.
    """
    if not all(parameter.requires_grad for parameter in model.parameters()):
        first = next((block for block in blocks if any(p.requires_grad for p in block.parameters())), None)
        blocks = [block for block in blocks if block is not first]
    for block in blocks:
        set_z3_leaf_module(block, True)
    sizes = (sum(getattr(p, "ds_numel", p.numel()) for p in block.parameters()) for block in blocks)
    zero = ds_config["zero_optimization"]
    ours = {"prefetch_bucket_size": max([_AHEAD, *sizes]), "max_reuse_distance": 0}
    # A user may have said either by its short name too.
    ours = {f"stage3_{key}": value for key, value in ours.items() if key not in zero}
    return {**ds_config, "zero_optimization": ours | zero}


def _within(part: torch.Tensor, whole: torch.Tensor) -> bool:
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
