"""A shape's inputs and forms."""

from __future__ import annotations

from mixpol_models.bench.case import Case
from mixpol_models.bench.din_cases import din_case
from mixpol_models.bench.dot_cases import dot_case
from mixpol_models.bench.polarity_cases import attention_case, embedding_case, fusion_case
from mixpol_models.bench.shapes import Shape


def make_case(shape: Shape, seed: int = 0) -> Case:
    """Inputs, forms and exact answer of a shape.

    Args:
        shape: any but those of `interleave`, which has no gradient: `interleave_case` makes it.
        seed: of everything random. The global generator is left as it was.

    Raises:
        ValueError: the shape's op has no case.
    """
    size = {"batch": shape.batch, "length": shape.length, "width": shape.width, "seed": seed}
    if shape.op == "target_attention":
        return din_case(**size, hidden=shape.hidden, activation=shape.activation, normalize=shape.normalize)
    if shape.op == "mixed_polarity_attention":
        return attention_case(**size, hidden=shape.hidden[0], items=shape.items, activation=shape.activation)
    if shape.op == "dot_target_attention":
        return dot_case(**size, heads=shape.heads, candidates=shape.candidates)
    if shape.op == "polarity_embedding":
        return embedding_case(**size, items=shape.items)
    if shape.op == "polarity_fusion":
        return fusion_case(**size)
    raise ValueError(f"op of {shape.name!r} was {shape.op!r}; expected one with a case, see make_case")
