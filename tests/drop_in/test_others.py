"""Layers of DeepCTR-Torch, RecBole and torch-rechub, stock against fused: every option."""

from __future__ import annotations

import pytest
import torch
from parity import Case, check, check_training, histories
from torch import Tensor, nn

from mixpol_kernels import drop_in

TRAIN = pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])


def spread(layer: nn.Module, generator: torch.Generator) -> None:
    """Weights and statistics of ordinary size: DeepCTR-Torch starts at 1e-4."""
    with torch.no_grad():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.is_floating_point():
                noise: Tensor = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise if "running" in name or "bn" in name else (noise - 0.5) * 0.8)


class TestDeepCTR:
    pytestmark = pytest.mark.filterwarnings("ignore")

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("deepctr_torch.layers.sequence")

    def case(self, generator: torch.Generator, masked: bool = False) -> Case:
        given = histories(generator)  # the padding row is an ordinary row there: the pads hold something
        lengths = given["lengths"][:, None]
        mask = given["mask"].flip(1) if masked else None
        return Case((given["target"][:, None], given["given"]), lambda layer, x: layer(*x, lengths, mask))

    @TRAIN
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("score", [False, True])
    @pytest.mark.parametrize("softmax", [False, True])
    @pytest.mark.parametrize("activation", ["sigmoid", "relu", "prelu", "dice"])
    def test_options(
        self, activation: str, softmax: bool, score: bool, masked: bool, train: bool, generator: torch.Generator
    ) -> None:
        from deepctr_torch.layers.sequence import AttentionSequencePoolingLayer

        layer = AttentionSequencePoolingLayer((16, 5), activation, softmax, score, masked, 8)
        spread(layer, generator)
        check(layer, lambda: self.case(generator, masked), train, ["local_att.dense.bias"] if softmax else ())

    def test_training(self, generator: torch.Generator) -> None:
        from deepctr_torch.layers.sequence import AttentionSequencePoolingLayer

        layer = AttentionSequencePoolingLayer((16,), "dice", embedding_dim=8)
        spread(layer, generator)
        check_training(layer, self.case(generator))

    def test_no_activation_stays(self) -> None:
        from deepctr_torch.layers.sequence import AttentionSequencePoolingLayer

        report = drop_in.accelerate(AttentionSequencePoolingLayer((4,), "linear", embedding_dim=8))
        assert "no activation" in report.left[0].reason


class TestRecBole:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("recbole.model.layers")

    def case(self, generator: torch.Generator, softmax: bool = False) -> Case:
        given = histories(generator)
        lengths = given["lengths"].clamp(min=1) if softmax else given["lengths"]  # the original has NaN there
        return Case((given["target"], given["given"]), lambda layer, x: layer(*x, lengths))

    @TRAIN
    @pytest.mark.parametrize("weights", [True, False])
    @pytest.mark.parametrize("softmax", [False, True])
    @pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "leakyrelu", "dice"])
    def test_options(
        self, activation: str, softmax: bool, weights: bool, train: bool, generator: torch.Generator
    ) -> None:
        from recbole.model.layers import SequenceAttLayer

        layer = SequenceAttLayer(torch.arange(60)[None], (32, 16, 5), activation, softmax, weights)
        spread(layer, generator)
        check(layer, lambda: self.case(generator, softmax), train, ["dense.bias"] if softmax else ())

    def test_training(self, generator: torch.Generator) -> None:
        from recbole.model.layers import SequenceAttLayer

        layer = SequenceAttLayer(torch.arange(60)[None], (32, 16), return_seq_weight=False)
        check_training(layer, self.case(generator))

    def test_empty_history_under_a_softmax_gives_zeros(self, generator: torch.Generator) -> None:
        from recbole.model.layers import SequenceAttLayer

        layer = SequenceAttLayer(torch.arange(60)[None], (32, 16), softmax_stag=True, return_seq_weight=False)
        drop_in.accelerate(layer)
        case = self.case(generator)
        assert not case.call(layer, case.inputs)[2].any()

    @pytest.mark.parametrize("activation", [None, "none"])
    def test_no_activation_stays(self, activation: str | None) -> None:
        from recbole.model.layers import SequenceAttLayer

        report = drop_in.accelerate(SequenceAttLayer(torch.arange(60)[None], (32, 16), activation))
        assert "no activation" in report.left[0].reason


class TestTorchRechub:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("torch_rechub.models.ranking.din")

    def case(self, generator: torch.Generator) -> Case:
        given = histories(generator)
        return Case((given["given"], given["target"]), lambda layer, x: layer(*x))

    @TRAIN
    @pytest.mark.parametrize("softmax", [False, True])
    @pytest.mark.parametrize("dims", [[36], [16, 5]], ids=str)
    @pytest.mark.parametrize("activation", ["dice", "relu", "sigmoid", "prelu", "leakyrelu"])
    def test_options(
        self, activation: str, dims: list[int], softmax: bool, train: bool, generator: torch.Generator
    ) -> None:
        from torch_rechub.models.ranking.din import ActivationUnit

        layer = ActivationUnit(8, dims, activation, softmax)
        spread(layer, generator)
        linears = [name for name, m in layer.named_modules() if isinstance(m, nn.Linear)]
        zero = [f"{name}.bias" for name in linears[:-1]] if train else []  # behind it comes a batch norm
        check(layer, lambda: self.case(generator), train, [*zero, *([f"{linears[-1]}.bias"] if softmax else [])])

    def test_training(self, generator: torch.Generator) -> None:
        from torch_rechub.models.ranking.din import ActivationUnit

        layer = ActivationUnit(8)
        check_training(layer, self.case(generator), ["attention.mlp.0.bias"])

    def test_softmax_activation_stays(self) -> None:
        from torch_rechub.models.ranking.din import ActivationUnit

        report = drop_in.accelerate(ActivationUnit(8, [4], "softmax"))
        assert "no activation Softmax" in report.left[0].reason
