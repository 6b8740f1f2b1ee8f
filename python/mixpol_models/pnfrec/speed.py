"""The packed form beside the plain one: time of training steps, and memory of the head."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from mixpol_models.bench.memory import peak_mib
from mixpol_models.bench.timing import interleaved
from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.events import Split
from mixpol_models.pnfrec.linear_cross_entropy import chunk_rows, chunked_cross_entropy
from mixpol_models.pnfrec.model import PNFRec
from mixpol_models.pnfrec.objective import Batches, Objective
from mixpol_models.pnfrec.reference import PlainPNFRec
from mixpol_models.pnfrec.training import build, optimizer_of
from mixpol_models.pnfrec.variants import variant

_LOSS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Speed:
    """Seconds of the same training steps in both forms.

    Attributes:
        steps: timed together, of `epoch_steps` in an epoch.
        rounds: interleaved rounds.
        packed, plain: medians over rounds, s.
        ratio, low, high: plain / packed in the same round, median and quartiles.
        threads: of torch.
        clock: what the seconds are.
    """

    steps: int
    epoch_steps: int
    rounds: int
    packed: float
    plain: float
    ratio: float
    low: float
    high: float
    threads: int
    clock: str

    def describe(self) -> str:
        """One line."""
        what = "one epoch" if self.steps == self.epoch_steps else f"{self.steps} of {self.epoch_steps} steps"
        return (
            f"{what}: plain {self.plain:.2f} s, packed {self.packed:.2f} s ({self.clock}), ratio {self.ratio:.2f} "
            f"(quartiles {self.low:.2f} to {self.high:.2f}, {self.rounds} interleaved rounds, {self.threads} thread(s))"
        )


def compare_speed(
    split: Split,
    config: PNFRecConfig,
    name: str = "pnfrec",
    *,
    steps: int | None = None,
    rounds: int = 3,
    clock: Literal["wall", "cpu"] = "wall",
) -> Speed:
    """Times whole training steps (batch, loss, backward, Adam) of both forms on the same users, interleaved.

    Both get the same optimizer. The first loss without dropout has to agree, else there is nothing to compare.

    Args:
        split: the data.
        config: settings.
        name: a variant over positives.
        steps: of an epoch; None all.
        rounds: interleaved, the order shuffled in each.
        clock: "cpu" counts this process's CPU time, which a busy machine stretches less.

    Raises:
        RuntimeError: the losses differ.
    """
    chosen = variant(name)
    packed = build(split, config, chosen, 0)
    device = packed.item_table.device
    plain = PlainPNFRec(packed, config, chosen).to(device)
    batches, objective = Batches(split.train, config, chosen), Objective(config, chosen, device)
    every = batches.epoch(config.batch_size, 0, 1)
    users = every[: steps or len(every)]

    first = batches.of(users[0]).to(device)
    packed.eval(), plain.eval()
    with torch.no_grad():
        ours, theirs = float(objective(packed, first)[0]), float(plain.loss(first)[0])
    if abs(ours - theirs) > _LOSS_TOLERANCE * abs(theirs):
        raise RuntimeError(f"the loss was {ours} packed and {theirs} plain, expected the same: not timed")
    packed.train(), plain.train()
    optimizers = {model: optimizer_of(model, config) for model in (packed, plain)}

    def epoch(model: PNFRec | PlainPNFRec, steps: list[torch.Tensor]) -> None:
        for some in steps:
            batch = batches.of(some).to(device)
            loss = objective(model, batch)[0] if isinstance(model, PNFRec) else model.loss(batch)[0]
            optimizers[model].zero_grad(set_to_none=True)
            loss.backward()
            optimizers[model].step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    models: dict[str, PNFRec | PlainPNFRec] = {"packed": packed, "plain": plain}
    for model in models.values():
        epoch(model, users[:1])
    epochs = {form: partial(epoch, model, users) for form, model in models.items()}
    times = interleaved(epochs, rounds, clock=time.perf_counter if clock == "wall" else time.process_time)
    low, ratio, high = times.ratio("plain", "packed")
    return Speed(
        steps=len(users),
        epoch_steps=len(every),
        rounds=len(times),
        packed=times.median("packed"),
        plain=times.median("plain"),
        ratio=ratio,
        low=low,
        high=high,
        threads=torch.get_num_threads(),
        clock="wall clock" if clock == "wall" else "CPU time",
    )


@dataclass(frozen=True)
class HeadMemory:
    """Memory of one forward and backward of the head, MiB.

    Attributes:
        peak: extra resident memory, gradients included; None where the system does not tell.
        gradients: of states and table.
        chunk: logits of a chunk.
        full: what [tokens, items] logits alone would take.
    """

    peak: float | None
    gradients: float
    chunk: float
    full: float


def head_memory(items: int = 1_000_000, tokens: int = 3200, width: int = 64) -> HeadMemory:
    """Measures `chunked_cross_entropy` in float32 on the CPU.

    Args:
        items: catalogue.
        tokens: of the batch, 64 users of 50 by default.
        width: of the states.
    """
    hidden = torch.randn(tokens, width, requires_grad=True)
    table = torch.randn(items, width, requires_grad=True)
    label = torch.randint(items, (tokens,))

    def prepare() -> None:
        hidden.grad = table.grad = None

    mib = 2**20 / 4
    return HeadMemory(
        peak=peak_mib(lambda: chunked_cross_entropy(hidden, table, label).backward(), prepare, repeats=1),
        gradients=(hidden.numel() + table.numel()) / mib,
        chunk=chunk_rows(items) * items / mib,
        full=tokens * items / mib,
    )
