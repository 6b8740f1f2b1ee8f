"""`python -m mixpol_models.bench.growth`: the fused cost of a real token, as histories grow and as padding grows."""

from __future__ import annotations

from mixpol_models.environment import prepare

prepare()  # before torch is imported

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mixpol_kernels.nn import TargetAttention
from mixpol_models.bench.figure import new_figure, save_figure
from mixpol_models.bench.gate import OUTPUT_FACTOR, largest_error
from mixpol_models.bench.timing import interleaved
from mixpol_models.files import check_output_file

LENGTHS = (10, 100, 1000, 10_000, 100_000)
_TOKENS = 100_000
_PADDINGS = (1, 2, 4, 8)
_UNPADDED = 500


@dataclass(frozen=True)
class GrowthRow:
    """One shape of the curve.

    Attributes:
        length: kept tokens of each user.
        padded: positions of each user, pads included.
        users: B; users times length is about the same in every row.
        forward_ns, total_ns: time of a kept token, forward alone and forward with backward.
    """

    length: int
    padded: int
    users: int
    forward_ns: float
    total_ns: float


class _Case:
    def __init__(self, attention: TargetAttention, length: int, padded: int, tokens: int) -> None:
        self.length, self.padded, self.users = length, padded, max(1, tokens // length)
        self.attention = attention
        width = attention.embedding_dim
        self.target = torch.randn(self.users, width, requires_grad=True)
        self.history = torch.randn(self.users, padded, width, requires_grad=True)
        self.lengths = torch.full((self.users,), length)
        self.check()

    def forward(self) -> torch.Tensor:
        pooled: torch.Tensor = self.attention(self.target, self.history, lengths=self.lengths)
        return pooled

    def step(self) -> None:
        self.forward().sum().backward()

    def clear(self) -> None:
        for leaf in (self.target, self.history, *self.attention.parameters()):
            leaf.grad = None

    def check(self) -> None:
        """One user against float64, within the error budget of plain float32."""
        exact = _reference(self, torch.float64)
        error = largest_error(self.forward()[0], exact)
        plain = largest_error(_reference(self, torch.float32), exact)
        allowed = OUTPUT_FACTOR * plain + 1e-6 * float(exact.abs().max())
        if not error <= allowed:
            raise RuntimeError(f"L = {self.length}: error {error:.3g}, allowed {allowed:.3g}")


def _reference(case: _Case, dtype: torch.dtype) -> torch.Tensor:
    unit = TargetAttention(case.attention.embedding_dim, [case.attention.layers[0].out_features], backend="reference")
    unit.load_state_dict(case.attention.state_dict())
    history = case.history[:1, : case.length].detach().to(dtype)
    pooled: torch.Tensor = unit.to(dtype)(case.target[:1].detach().to(dtype), history)
    return pooled[0].detach()


def measure(
    lengths: Sequence[int] = LENGTHS,
    tokens: int = _TOKENS,
    rounds: int = 5,
    seconds: float = 1.0,
    width: int = 64,
    hidden: int = 64,
) -> list[GrowthRow]:
    """Times the fused DIN unit (ReLU) on about `tokens` kept tokens at each length, then at growing padding.

    Every case is checked against float64 first; rounds are interleaved.
    """
    torch.manual_seed(0)
    attention = TargetAttention(width, [hidden], backend="cpu")
    shapes = [(length, length) for length in lengths]
    shapes += [(_UNPADDED, _UNPADDED * factor) for factor in _PADDINGS if _UNPADDED * factor <= max(lengths)]
    cases = [_Case(attention, length, padded, tokens) for length, padded in dict.fromkeys(shapes)]
    calls = {}
    for i, case in enumerate(cases):
        calls[i, "forward"] = torch.no_grad()(case.forward)
        calls[i, "total"] = case.step

    def clear() -> None:
        for case in cases:
            case.clear()

    times = interleaved(calls, rounds, seconds, clear)
    return [
        GrowthRow(
            case.length,
            case.padded,
            case.users,
            *(1e9 * times.median((i, what)) / (case.users * case.length) for what in ("forward", "total")),
        )
        for i, case in enumerate(cases)
    ]


def plot(rows: Sequence[GrowthRow], path: Path) -> None:
    """The curve as a picture: time of a token against length, unpadded rows only."""
    curve = sorted((row for row in rows if row.padded == row.length), key=lambda row: row.length)
    figure, (axes,) = new_figure(7, 4, 1)
    for what, name in (("total_ns", "forward + backward"), ("forward_ns", "forward")):
        axes.plot([row.length for row in curve], [getattr(row, what) for row in curve], marker="o", label=name)
    axes.set(xscale="log", xlabel="tokens a user", ylabel="ns per token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save_figure(figure, path, f"Fused DIN unit: cost of a token, {torch.get_num_threads()} threads")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, draws the picture if asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=_TOKENS, metavar="N", help="kept tokens a case (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write the picture")
    options = parser.parse_args(arguments)
    if options.plot:
        try:
            check_output_file(options.plot, "--plot")
        except ValueError as error:
            parser.error(str(error))
    rows = measure(tokens=options.tokens, rounds=options.rounds)
    table = Table(title="Cost of a kept token, ns; D = 64, one ReLU layer of 64, float32")
    for name in ("tokens a user", "padded to", "users", "forward", "forward + backward"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(str(row.length), str(row.padded), str(row.users), f"{row.forward_ns:.0f}", f"{row.total_ns:.0f}")
    Console(width=100).print(table)
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
