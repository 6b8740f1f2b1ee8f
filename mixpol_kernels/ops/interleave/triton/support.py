"""What the Triton kernels can take; imports no triton."""

from __future__ import annotations

from torch import Tensor

from mixpol_kernels.ops.triton import devices


def refusal(times: Tensor) -> str:
    """Why the kernels cannot run on the device of the times; empty if they can."""
    reason: str = devices.refusal(times.device.index or 0)
    return reason
