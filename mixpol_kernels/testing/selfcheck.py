"""`python -m mixpol_kernels.testing.selfcheck`: the compiled kernels against the references, in a minute or less."""

from __future__ import annotations

import argparse
import hashlib
import random

import torch

from mixpol_kernels.backend import STORED
from mixpol_kernels.library import library
from mixpol_kernels.testing.budget import over_budget, worst
from mixpol_kernels.testing.configurations import drawn, grid
from mixpol_kernels.testing.inputs import OPS, make


def check(seed: int, cases: int) -> tuple[str, list[str]]:
    """Random cases of every op: a digest of the results, and one line for each that is over its error budget."""
    generator, source = torch.Generator().manual_seed(seed), random.Random(seed)
    digest, lines = hashlib.sha256(), []
    for op in OPS:
        pairs = grid(op)
        configs = [source.choice(pairs) if i % 2 else drawn(op, source) for i in range(cases)]
        for config in configs:
            dtype = source.choice(STORED) if config.has_unit else torch.float32
            case = make(config, generator, dtype)
            where = case.place(generator)
            lines += over_budget(case, where, generator, dtype=dtype)
            for name, value in sorted(case.run("cpu", where, dtype).items()):
                digest.update(name.encode() + value.contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16], lines


def main() -> int:
    """Prints the instruction set, a digest of every result, and what is over its error budget."""
    parser = argparse.ArgumentParser(prog="python -m mixpol_kernels.testing.selfcheck", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--cases", type=int, default=20, help="random cases per op (default %(default)s)")
    options = parser.parse_args()
    if not library.loaded:
        print(f"the compiled library is not loaded: {library.reason}")
        return 1
    digest, lines = check(options.seed, options.cases)
    print(f"isa {library.isa()}, seed {options.seed}, digest {digest}")
    print(f"largest share of the error budget used: {max(worst.values(), default=0.0):.2f}")
    print("\n".join(lines) if lines else "every result is within its error budget")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
