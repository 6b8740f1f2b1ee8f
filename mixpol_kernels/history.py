"""The layouts of a behaviour history: jagged (offsets, torch.nested, TorchRec) or padded (lengths, mask, or full)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from mixpol_kernels.checks import FLOAT_TYPES, ID_TYPES, check_range, has_values

P = ParamSpec("P")
R = TypeVar("R")
_INDEX_TYPES = (torch.int32, torch.int64)
MASK_TYPES = (torch.bool, *ID_TYPES, *FLOAT_TYPES)


class History(NamedTuple):
    """A behaviour history with its layout: what `mixpol_kernels.mixed_polarity_attention` reads.

    Attributes:
        rows: item ids [N] or [B, L], or vectors that were looked up already, [N, D] or [B, L, D]. Or jagged, alone: a
            nested tensor of layout torch.jagged, or a TorchRec JaggedTensor.
        offsets: [B + 1] int32 or int64: user b owns tokens offsets[b] ... offsets[b + 1] - 1 of jagged rows.
        lengths: [B] int32 or int64: the first lengths[b] positions of padded rows are kept.
        mask: [B, L]: nonzero positions of padded rows are kept, on any side.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> mk.History(torch.tensor([3, 1, 2]), offsets=torch.tensor([0, 2, 3])).rows.shape
        torch.Size([3])
    """

    rows: Tensor
    offsets: Tensor | None = None
    lengths: Tensor | None = None
    mask: Tensor | None = None


class Layout(NamedTuple):
    """Which tokens belong to which user. At most one of the three tensors is set.

    Attributes:
        batch: number of users B.
        token_shape: leading dimensions of the history: (N,) jagged, (B, L) padded.
        offsets: [B + 1] int32 or int64, jagged: user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64, padded on the right: user b owns the first lengths[b] of L positions.
        mask: [B, L], padded on any side: nonzero is kept.
    """

    batch: int
    token_shape: tuple[int, ...]
    offsets: Tensor | None
    lengths: Tensor | None
    mask: Tensor | None

    def assignment(
        self, device: torch.device, **ids: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Token-level form on a device, for the references; checks the values that the compiled kernels check.

        Args:
            device: of the tokens.
            **ids: ids by name with the table that they are rows of; kept ones have to be in it.

        Returns:
            user: [T] int64, the user of each token; T is the number of tokens, pads included.
            keep: [T] bool, False at pads; None if there are none.

        Raises:
            RuntimeError: offsets, lengths or ids out of range. Not while a graph is compiled, which has no values.
        """
        self.check(**ids)
        offsets, _, _ = self.canonical()
        if offsets is not None:
            positions = torch.arange(self.token_shape[0], device=offsets.device)
            # Unlike repeat_interleave, in bounds whatever the offsets: a compiled reference cannot check them.
            user = torch.searchsorted(offsets[1:].contiguous(), positions, right=True)
            return user.clamp(max=self.batch - 1).to(device), None
        rows = torch.arange(self.batch, device=self._device)
        return rows[:, None].expand(self.token_shape).reshape(-1).to(device), self.keep()

    def check(self, **ids: tuple[Tensor | None, Tensor | None]) -> None:
        """The value checks of the compiled kernels, for implementations that lack them; see `assignment`."""
        if torch.compiler.is_compiling():
            return
        self.check_values()
        for name, (values, table) in ids.items():
            if values is not None and table is not None:
                check_range(name, values, table.shape[0], self.keep())

    def keep(self) -> Tensor | None:
        """[T] bool, False at pads; None if there are none."""
        _, lengths, mask = self.canonical()
        if mask is not None:
            return mask.reshape(-1)
        if lengths is None:
            return None
        position = torch.arange(self.token_shape[1], device=lengths.device)
        return (position[None, :] < lengths[:, None]).reshape(-1)

    def canonical(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Offsets, lengths and mask as the compiled ops take them."""
        return canonical(self.offsets, self.lengths, self.mask)

    def occupied(self) -> Tensor | None:
        """[B] bool: which users have a token; None where it is known, without waiting for a GPU, that all have one.

        Whatever a matrix product makes of the zeros of an empty history, NaN where the matrix has one, is masked by it.
        """
        if self.offsets is not None:
            found = self.offsets.diff() > 0
        elif self.lengths is not None:
            found = self.lengths > 0
        elif self.mask is not None:
            found = (self.mask != 0).any(1)
        elif self.token_shape[1] != 0:
            return None
        else:
            return torch.zeros(self.batch, dtype=torch.bool)
        # Values may be looked at where they are at hand, and not while the call is being recorded.
        recording = (
            torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or type(found) is not Tensor
        )
        if not recording and found.device.type == "cpu" and bool(found.all()):
            return None
        return found

    @property
    def _device(self) -> torch.device | None:
        for tensor in (self.offsets, self.lengths, self.mask):
            if tensor is not None:
                return tensor.device
        return None

    def check_values(self) -> None:
        """The value checks of the compiled kernels, for implementations that lack them, where there are values.

        Raises:
            RuntimeError: offsets that do not rise from 0 to N, or lengths outside 0 ... L.
        """
        given = [tensor for tensor in (self.offsets, self.lengths, self.mask) if tensor is not None]
        if not all(map(has_values, given)):
            return
        if self.offsets is not None:
            check_offsets("offsets", self.offsets, self.token_shape[0], "history tokens")
        if self.lengths is not None:
            bad = ((self.lengths < 0) | (self.lengths > self.token_shape[1])).nonzero()
            if bad.numel():
                row = int(bad[0])
                raise RuntimeError(
                    f"lengths[{row}] is {int(self.lengths[row])}; expected 0 ... {self.token_shape[1]}, "
                    "the padded length of the history"
                )


def check_offsets(name: str, offsets: Tensor, rows: int, of: str) -> None:
    """Raises RuntimeError unless offsets [B + 1] rise from 0 to `rows`, the number `of` something."""
    if int(offsets[0]) != 0 or int(offsets[-1]) != rows:
        raise RuntimeError(
            f"{name} run from {int(offsets[0])} to {int(offsets[-1])}; expected 0 to {rows}, the number of {of}"
        )
    falls = (offsets.diff() < 0).nonzero()
    if falls.numel():
        row = int(falls[0])
        raise RuntimeError(
            f"{name}[{row + 1}] is {int(offsets[row + 1])}, below {name}[{row}] = {int(offsets[row])}; "
            "expected offsets that never fall"
        )


def canonical(
    offsets: Tensor | None, lengths: Tensor | None, mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Contiguous int64 offsets and lengths and bool mask; the tensors themselves where they are that already.

    Called in the forward and again in the backward, so that no copy is kept between them.
    """
    return (
        None if offsets is None else offsets.long().contiguous(),
        None if lengths is None else lengths.long().contiguous(),
        None if mask is None else (mask if mask.dtype == torch.bool else mask != 0).contiguous(),
    )


def layout(
    history: Tensor,
    batch: int,
    *,
    name: str,
    trailing: int,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
) -> Layout:
    """Validates a history's layout arguments.

    Args:
        history: [N, ...] jagged or [B, L, ...] padded.
        batch: number of users, from the target.
        name: the argument's name, for messages.
        trailing: number of dimensions behind the token dimensions (1 for vectors, 0 for ids).
        offsets: [B + 1] int32 or int64; makes the history jagged.
        lengths: [B] int32 or int64.
        mask: [B, L], bool, integer or float; nonzero is kept.

    Raises:
        ValueError: contradicting arguments or wrong shapes.
        TypeError: wrong dtypes.
    """
    if (offsets is not None) + (lengths is not None) + (mask is not None) > 1:
        given = [n for n, v in (("offsets", offsets), ("lengths", lengths), ("mask", mask)) if v is not None]
        raise ValueError(f"{' and '.join(given)} were given together; expected at most one of offsets, lengths, mask")
    dims = history.dim() - trailing
    shape = tuple(history.shape[:dims])
    if offsets is not None:
        if dims != 1:
            raise ValueError(f"{name} has shape {list(history.shape)}; expected [N{', D' * trailing}] with offsets")
        _check_index("offsets", offsets, (batch + 1,), "B + 1", history)
        return Layout(batch, shape, offsets, None, None)
    if dims != 2:
        hint = "; a jagged history also needs offsets=" if dims == 1 else ""
        raise ValueError(f"{name} has shape {list(history.shape)}; expected [B, L{', D' * trailing}]{hint}")
    if shape[0] != batch:
        raise ValueError(f"{name} has {shape[0]} users and target has {batch}; expected the same number")
    if lengths is not None:
        _check_index("lengths", lengths, (batch,), "B", history)
        return Layout(batch, shape, None, lengths, None)
    if mask is not None:
        if mask.dtype not in MASK_TYPES:
            raise TypeError(f"mask has dtype {mask.dtype}; expected bool, an integer dtype or a floating-point one")
        if tuple(mask.shape) != shape:
            raise ValueError(f"mask has shape {list(mask.shape)}; expected {list(shape)}, one entry a position")
        _check_device("mask", mask, history)
        return Layout(batch, shape, None, None, mask)
    return Layout(batch, shape, None, None, None)


def _check_index(name: str, index: Tensor, shape: tuple[int, ...], words: str, history: Tensor) -> None:
    if index.dtype not in _INDEX_TYPES:
        raise TypeError(f"{name} has dtype {index.dtype}; expected torch.int32 or torch.int64")
    if index.shape != shape:
        raise ValueError(f"{name} has shape {list(index.shape)}; expected {list(shape)} ({words})")
    _check_device(name, index, history)


def _check_device(name: str, tensor: Tensor, history: Tensor) -> None:
    if tensor.device != history.device:
        raise ValueError(f"{name} is on {tensor.device} and the history on {history.device}; move one of them")


def accepts_jagged(*names: str, returns_tokens: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a function of `offsets`, or of a `History`, take jagged tensors of torch.nested or TorchRec.

    They become their values and offsets, so that gradients flow back to a nested tensor. Its holes, of
    `torch.nested.narrow`, are left out by a gather.

    Args:
        names: arguments with a row a token, a `History` first. Plain tensors beside a jagged one are
            values in its order.
        returns_tokens: the result has a row a token: it becomes nested too if the first jagged argument is.

    Raises:
        TypeError: from the function: a value of another kind, or a nested tensor of another layout.
        ValueError: from the function: jagged arguments whose offsets differ, jagged ones with a layout argument, or of
            another number of users than the target, or several features in one KeyedJaggedTensor.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        places = [(name, list(signature.parameters).index(name)) for name in names]

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, at in places:
                value = args[at] if at < len(args) else kwargs.get(name)
                value = value.rows if isinstance(value, History) else value
                if value is not None and (not isinstance(value, Tensor) or value.is_nested):
                    break
            else:
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            like = _to_values(bound.arguments, names)
            if "offsets" not in signature.parameters:  # they travel in the bundle
                bound.arguments[names[0]] = History(bound.arguments[names[0]], bound.arguments["offsets"])
            found = function(*bound.args, **bound.kwargs)
            if returns_tokens and like is not None:
                return cast("R", torch.nested.nested_tensor_from_jagged(cast("Tensor", found), like))
            return found

        return run

    return decorate


def _to_values(arguments: dict[str, Any], names: Sequence[str]) -> Tensor | None:
    """Puts values and offsets in the place of jagged arguments; the offsets if the first of them is a nested tensor."""
    bundles = {name: value for name in names if isinstance(value := arguments.get(name), History)}
    for name, history in bundles.items():
        arguments |= {**history._asdict(), name: history.rows}
    first, offsets, nested = "", None, False
    for name in names:
        value = arguments.get(name)
        if value is None or (isinstance(value, Tensor) and not value.is_nested):
            continue
        arguments[name], found = _values_and_offsets(name, value)
        if offsets is None:
            first, offsets, nested = name, found, isinstance(value, Tensor)
        elif found.shape != offsets.shape or not (found is offsets or _equal(found, offsets)):
            raise ValueError(f"{name} and {first} have other offsets; expected jagged tensors of the same lengths")
    assert offsets is not None
    for name in ("offsets", "lengths", "mask"):
        if arguments.get(name) is not None:
            raise ValueError(f"{name} was given and {first} is jagged; expected {name}=None: {first} has its offsets")
    target, users = arguments.get("target"), offsets.shape[0] - 1
    if isinstance(target, Tensor) and target.dim() and target.shape[0] != users:
        raise ValueError(f"{first} has {users} users and target has {target.shape[0]}; expected the same number")
    arguments["offsets"] = offsets
    return offsets if nested else None


def _equal(a: Tensor, b: Tensor) -> bool:
    # While a graph is traced there are no values: two sets of offsets may then come in as equal.
    return torch.compiler.is_compiling() or torch.equal(a.long(), b.long())


def _values_and_offsets(name: str, value: Any) -> tuple[Tensor, Tensor]:
    if isinstance(value, Tensor):
        if value.layout is not torch.jagged:
            raise TypeError(
                f"{name} was a nested tensor of layout {value.layout}; expected layout=torch.jagged: "
                f"torch.nested.as_nested_tensor(list({name}.unbind()), layout=torch.jagged)"
            )
        nested: Any = value
        ragged = nested._ragged_idx
        if ragged != 1:
            raise ValueError(f"{name} was a nested tensor with ragged dimension {ragged}; expected 1, a user's tokens")
        values, offsets, lengths = nested.values(), nested.offsets(), nested.lengths()
        if lengths is None:
            return values, offsets
        packed = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shift = (offsets[: lengths.shape[0]] - packed[:-1]).repeat_interleave(lengths)
        return values.index_select(0, shift + torch.arange(shift.shape[0], device=shift.device)), packed
    if not callable(getattr(value, "values", None)) or not callable(getattr(value, "offsets", None)):
        raise TypeError(f"{name} was a {type(value).__name__}; expected a tensor, nested or not, or a JaggedTensor")
    keys = list(value.keys()) if callable(getattr(value, "keys", None)) else []
    if len(keys) > 1:
        raise ValueError(f"{name} has the features {keys}; expected one of them, say {name}[{keys[0]!r}]")
    weights = getattr(value, "weights_or_none", None)
    if callable(weights) and weights() is not None:
        raise ValueError(f"{name} has weights, which no op reads; expected a JaggedTensor of values and lengths alone")
    return value.values(), value.offsets()
