"""A backbone built on the meta device is whole once a checkpoint is loaded, or once each part has started again."""

from __future__ import annotations

import pytest
import torch
from backbone_cases import CASES, batch_of, model_of

EACH = pytest.mark.parametrize("case", CASES)


@EACH
def test_a_checkpoint_holds_everything(case: str) -> None:
    saved = model_of(case, "tapf").eval()
    with torch.device("meta"):
        model = model_of(case, "tapf").eval()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
    model.load_state_dict(saved.state_dict())
    batch = batch_of()
    assert torch.equal(model(batch), saved(batch))


@EACH
def test_every_part_can_start_again(case: str) -> None:
    """Parts that hold tensors have `reset_parameters`, as FSDP asks of them."""
    for module in model_of(case, "tapf").modules():
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            assert callable(getattr(module, "reset_parameters", None)), type(module).__name__
