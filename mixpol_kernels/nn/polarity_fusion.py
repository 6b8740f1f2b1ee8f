"""`PolarityFusion`: polarity embedding and TAPF gate on tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixpol_kernels.backend import plain_form
from mixpol_kernels.checks import check_choice
from mixpol_kernels.history import accepts_jagged
from mixpol_kernels.nn import plain
from mixpol_kernels.nn.called import LINEAR, all_plain, first_reason
from mixpol_kernels.nn.sizes import check_size
from mixpol_kernels.nn.starts import ZeroLinear, reset_children
from mixpol_kernels.ops.fusion import FUSIONS, GATE_INPUTS, FusionParameters
from mixpol_kernels.ops.polarity_fusion.api import polarity_fusion


class PolarityFusion(nn.Module):
    """Marks tokens with their polarity; see `mixpol_kernels.polarity_fusion` for the formulas.

    W_t starts at zero, so that "tapf" starts as "bias"; P and the gate start small. A gate or target projection that is
    more than its parameters (a subclass, hooks) is called, in plain PyTorch; see `TargetAttention`.

    Args:
        embedding_dim: width D.
        fusion: "none", "bias" or "tapf".
        n_polarity: rows P of the polarity table; by convention row 0 is negative, row 1 positive.
        signs: one per row, for "tapf": ±1, 0 or any strength; default -1 for row 0 and +1 for the others.
        backend: "auto" or a name in `mixpol_kernels.backend.BACKENDS`, as in the op.
        gate_inputs: what the gate of "tapf" sees: "product" for x * t, or "full" for [x ; t ; x * t].
        num_extra: rows R of an extra additive table, of recency buckets or positions say; 0 for none.

    Attributes:
        polarity_table: [P, D] parameter; None with "none".
        gate: `nn.Linear(D, D)`, or `nn.Linear(3 D, D)` with "full" (W_g, b_g); None unless "tapf".
        target_projection: `nn.Linear(D, D, bias=False)` (W_t); None unless "tapf".
        extra_table: [R, D] parameter; None without one.
        sign: [P] buffer. Checkpoints hold it; one without it, of an earlier release, means the module's own `signs`.

    Raises:
        TypeError: sizes that are no whole numbers.
        ValueError: options out of range, or that contradict each other.

    Example:
        >>> import torch
        >>> from mixpol_kernels.nn import PolarityFusion
        >>> fusion = PolarityFusion(8, "tapf")
        >>> fusion(torch.randn(2, 8), torch.randn(2, 5, 8), torch.randint(2, (2, 5))).shape
        torch.Size([2, 5, 8])
    """

    sign: Tensor

    def __init__(
        self,
        embedding_dim: int,
        fusion: str = "tapf",
        n_polarity: int = 2,
        signs: Sequence[float] | None = None,
        backend: str = "auto",
        gate_inputs: str = "product",
        num_extra: int = 0,
    ) -> None:
        super().__init__()
        check_choice("fusion", fusion, FUSIONS)
        check_choice("gate_inputs", gate_inputs, GATE_INPUTS)
        check_size("embedding_dim", embedding_dim)
        check_size("n_polarity", n_polarity)
        check_size("num_extra", num_extra, 0)
        if num_extra and fusion == "none":
            raise ValueError(
                f"num_extra was {num_extra} with fusion={fusion!r}; expected 0 rows, or more with 'bias' or 'tapf'"
            )
        if signs is None:
            signs = [-1.0] + [1.0] * (n_polarity - 1)
        if len(signs) != n_polarity:
            raise ValueError(f"signs has {len(signs)} entries; expected {n_polarity}, one per polarity row")
        self.fusion = fusion
        self.gate_inputs = gate_inputs
        self.backend = backend
        self.signs = tuple(float(s) for s in signs)
        self.register_buffer("sign", torch.tensor(self.signs))
        self.polarity_table: nn.Parameter | None = None
        self.extra_table: nn.Parameter | None = None
        self.gate: nn.Linear | None = None
        self.target_projection: nn.Linear | None = None
        if fusion != "none":
            self.polarity_table = nn.Parameter(torch.empty(n_polarity, embedding_dim))
        if num_extra:
            self.extra_table = nn.Parameter(torch.empty(num_extra, embedding_dim))
        self.reset_parameters()
        if fusion == "tapf":
            self.gate = nn.Linear(embedding_dim * (3 if gate_inputs == "full" else 1), embedding_dim)
            self.target_projection = ZeroLinear(embedding_dim, embedding_dim, bias=False)

    def reset_parameters(self) -> None:
        """Starts again: tables, signs and the layers inside."""
        reset_children(self)
        for table in (self.polarity_table, self.extra_table):
            if table is not None:
                scale = 1 / math.sqrt(table.shape[1])
                nn.init.uniform_(table, -scale, scale)
        with torch.no_grad():
            self.sign.copy_(torch.tensor(self.signs))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "sign" not in state_dict:  # of a release that did not save it: the module's own
            state_dict = {**state_dict, prefix + "sign": torch.tensor(self.signs)}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def called(self) -> str:
        """Why the gate or the target projection has to be called, not its parameters read; empty if none has to."""
        gate, projection = self._modules.get("gate"), self._modules.get("target_projection")
        if gate is None and projection is None:
            return ""
        if all_plain((gate, projection), LINEAR):
            if gate._parameters.get("bias", True) is None:  # type: ignore[union-attr]
                return "gate has no bias"
            if projection._parameters.get("bias") is not None:  # type: ignore[union-attr]
                return "target_projection has a bias"
            return ""
        return first_reason([("gate", gate, LINEAR), ("target_projection", projection, LINEAR)])

    def gate_tensors(self) -> tuple[Tensor, ...]:
        """(W_g, b_g, W_t) as the ops take them; empty unless "tapf"."""
        gate, projection = self._modules.get("gate"), self._modules.get("target_projection")  # attributes are slow
        if gate is None or projection is None:
            return ()
        return gate.weight, gate.bias, projection.weight  # type: ignore[return-value]

    def parameters_of_op(self) -> FusionParameters:
        """The parameters as the fused op of ids takes them."""
        sign = self.sign if self.fusion != "none" else None
        return FusionParameters(self.fusion, self.polarity_table, self.gate_tensors(), sign, self.extra_table)

    @accepts_jagged("tokens", "polarity", "extra_ids", returns_tokens=True)
    def forward(
        self,
        target: Tensor,
        tokens: Tensor,
        polarity: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        extra_ids: Tensor | None = None,
    ) -> Tensor:
        """Target [B, D], tokens [B, L, D] or [N, D], polarity and extra_ids [B, L] or [N] to fused tokens."""
        if reason := self.called():
            plain_form("polarity_fusion", self.backend, reason)
            where = {"lengths": lengths, "mask": mask, "offsets": offsets}
            return plain.polarity_fusion(self, target, tokens, polarity, extra_ids, where)
        of_op: dict[str, Any] = self.parameters_of_op()._asdict()
        return polarity_fusion(
            target, tokens, polarity, extra_ids=extra_ids, offsets=offsets, lengths=lengths, mask=mask,
            backend=self.backend, **of_op,
        )  # fmt: skip

    def extra_repr(self) -> str:
        signs = list(self.signs) if self.sign.is_meta else self.sign.tolist()
        text = f"fusion={self.fusion!r}, signs={signs}, backend={self.backend!r}"
        if self.fusion == "tapf":
            text += f", gate_inputs={self.gate_inputs!r}"
        return text if self.extra_table is None else f"{text}, num_extra={self.extra_table.shape[0]}"
