"""`python levels.py SEED [--checks NAME]`: what holds at every instruction set, at the one that MIXPOL_CPU_ISA allows.

Prints the level, then a traceback for each check that fails, and exits 1 if any does. A program and not a test run per
level: starting it costs one import. `test_levels.py` runs it; checks are the functions of the tests beside it.
"""

from __future__ import annotations

import argparse
import random
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "dot_target_attention"))

import dot_cases
import dot_variants
import test_bfloat16_products as products
import test_dot_values as dot
import test_low_precision as low
import torch
from views import VIEWS

from mixpol_kernels.library import library
from mixpol_kernels.testing import selfcheck

Check = tuple[str, Callable[[torch.Generator], None]]


def within_the_budget(cases: int) -> Callable[[torch.Generator], None]:
    def check(generator: torch.Generator) -> None:
        _, lines = selfcheck.check(int(torch.randint(2**31, (), generator=generator)), cases)
        assert not lines, "\n".join(lines)

    return check


def of_any_level() -> Iterator[Check]:
    yield "selfcheck", within_the_budget(12)
    for dtype in low.LOW:
        for width in (1, 7, 16, 33):  # at the lowest level converted by hand
            yield (
                f"converted {dtype} {width}",
                lambda _, w=width, d=dtype: low.test_every_finite_value_is_converted_exactly(w, d),
            )
        yield f"nearest even {dtype}", lambda g, d=dtype: low.test_rounds_to_nearest_even(d, g)
    for name, config in dot_variants.VARIANTS.items():
        yield f"dot budget {name}", lambda g, c=config: dot.test_budget(dot_cases.make(c, g), g)
    for top_k, layout in ((1, "jagged"), (4, "mask_holes"), (50, "jagged"), (100, "mask_holes")):
        yield f"dot ties {top_k}", lambda g, k=top_k, form=layout: dot.test_ties(k, form, "cpu", g)


def of_pairs() -> Iterator[Check]:
    """Products of bfloat16 in pairs, emulated."""
    dtype = torch.bfloat16
    for op in low.OPS:
        yield f"which products {op}", lambda g, o=op: products.test_which_products_run(o, g)
        for hidden in ((5,), (64,), (70,), (5, 3), (20, 9, 4)):
            for width, candidates in ((2, None), (7, 2), (16, 2), (16, None), (33, None), (33, 2)):
                yield (
                    f"whole numbers {op} {width} {hidden} {candidates}",
                    lambda g, a=(op, width, hidden, candidates): products.test_whole_numbers_are_exact(*a, g),
                )
        for hidden in ((36,), (70,), (33, 12)):
            yield (
                f"batch {op} {hidden}",
                lambda g, a=(op, hidden): products.test_batch_invariance_of_long_histories(*a, g),
            )
        for normalize, candidates in (("none", 3), ("softmax", None), ("sigmoid", 3)):
            yield (
                f"weights {op} {normalize}",
                lambda g, a=(op, candidates, normalize): low.test_attention_weights(*a, dtype, g),
            )
        yield f"sparse {op}", lambda g, o=op: low.test_sparse_table_gradient(o, dtype, g)
        yield f"threads {op}", lambda g, o=op: low.test_same_bits_for_any_threads_and_any_batch(o, dtype, g)
        for view, layout in zip(VIEWS, ("jagged", "lengths") * len(VIEWS), strict=False):
            yield f"views {op}", lambda g, a=(op, view, layout): low.test_strided_views(*a, dtype, g)
        for form in ({"batch": 0}, {"counts": (0, 0, 0)}, {"candidates": 0}):
            yield f"empty {op} {form}", lambda g, o=op, f=form: low.test_empty(o, "lengths", f, dtype, g)
    for i, activation in enumerate(("relu", "prelu", "dice", "sigmoid")):
        for hidden in ((36,), (80, 40)):
            gate = ("product", "full")[(i + len(hidden)) % 2]
            yield (
                f"long {hidden} {activation} {gate}",
                lambda g, a=(hidden, activation, gate): products.test_budget_of_long_histories(*a, g),
            )
    for i, config in enumerate(low.GRID):
        yield f"pair of options {i}", lambda g, c=config: low.test_budget_of_every_pair_of_options(c, dtype, g)
    for name in ("target", "tokens", "weights[1]", "biases[0]"):
        for value in (torch.nan, torch.inf, -torch.inf):
            yield f"{value} in {name}", lambda g, a=(name, value): low.test_nonfinite_values(*a, dtype, g)
    yield "overflow", lambda g: low.test_overflow_is_infinite_as_in_the_reference(dtype, g)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--checks", choices=("few", "level", "pairs"), default="level")
    options = parser.parse_args()
    if not library.loaded:
        print(library.reason)
        return 1
    print(f"isa {library.isa()}")
    torch.set_num_threads(1)
    checks = {"few": lambda: [("selfcheck", within_the_budget(1))], "level": of_any_level, "pairs": of_pairs}
    failed = 0
    for name, check in checks[options.checks]():
        seed = options.seed ^ zlib.crc32(name.encode())
        random.seed(seed), torch.manual_seed(seed)
        try:
            check(torch.Generator().manual_seed(seed))
        except Exception:
            failed += 1
            print(f"--- {name}\n{traceback.format_exc()}")
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
