"""Inner modules that are more than their parameters: the numbers, gradients and hooks of the concatenated form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from changes import CHANGES, ITEMS, LENGTH, LENGTHS, USERS, WIDTH, activation_unit, adapted, gradients, rows, same
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import mixpol_kernels
from mixpol_kernels.nn import MixedPolarityAttention, MultiHeadTargetAttention, PolarityFusion, TargetAttention


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_layers_of_the_unit(change: Callable[[nn.Linear], nn.Module], at: int, generator: torch.Generator) -> None:
    layer = TargetAttention(WIDTH, [8, 5])
    layer.layers[at] = change(layer.layers[at])
    target, history = rows(generator, USERS), rows(generator, USERS, LENGTH)
    with torch.no_grad():
        first = layer(target, history)
    got, want = layer(target, history), activation_unit(layer, target, history)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(first, want)
    same(gradients(layer, got, (target, history)), gradients(layer, want, (target, history)))


@pytest.mark.parametrize("layout", ["lengths", "mask", "offsets"])
@pytest.mark.parametrize("candidates", [(), (3,)], ids=["one", "several"])
@pytest.mark.parametrize(
    "options",
    [{"activation": "prelu", "normalize": "softmax", "scale": 0.3}, {"activation": "dice", "norm_affine": True},
     {"activation": "dice", "dropout": 0.3}, {"activation": "dice_row", "batch_norm": True},
     {"activation": "leaky_relu", "dropout": 0.4, "normalize": "sigmoid"},
     {"activation": "silu", "blocks": ("x", "t*x")}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_is_the_fused_form_where_a_hook_changes_nothing(
    options: dict[str, Any], candidates: tuple[int, ...], layout: str, train: bool, generator: torch.Generator
) -> None:
    """Every option, layout and statistic, against the kernels; what stands in pads is not read."""
    fused = TargetAttention(WIDTH, [8, 5], **options).train(train)
    called = copy.deepcopy(fused)
    seen: list[int] = []
    called.layers[0].register_forward_hook(lambda m, x, y: seen.append(len(x[0])))
    target, history = rows(generator, USERS, *candidates), rows(generator, USERS, LENGTH)
    keep = torch.arange(LENGTH) < LENGTHS[:, None]
    where: dict[str, Tensor] = {"lengths": LENGTHS, "mask": keep}
    if layout == "offsets":
        history = history[keep].detach().requires_grad_()
        where["offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)])
    else:
        history = torch.where(keep[..., None], history, torch.nan).detach().requires_grad_()
    found = []
    for layer in (fused, called):
        torch.manual_seed(7)
        out, weights = layer(target, history, return_weights=True, **{layout: where[layout]})
        found.append([out, weights, *gradients(layer, out, (target, history)), *layer.buffers()])
    same(found[1], found[0])
    assert seen == [int(LENGTHS.sum())]


def test_pads_in_norm(generator: torch.Generator) -> None:
    """Zero tokens that only a norm sees."""
    fused = TargetAttention(WIDTH, [8, 5], "dice", pads_in_norm=True)
    called = copy.deepcopy(fused)
    called.norms[0].register_forward_hook(lambda m, x, y: None)
    target, history = rows(generator, USERS), rows(generator, USERS, LENGTH)
    found = []
    for layer in (fused, called):
        out = layer(target, history, lengths=LENGTHS)
        found.append([out, *gradients(layer, out, (target, history)), *layer.buffers()])
    same(found[1], found[0])


def test_a_norm_of_another_class(generator: torch.Generator) -> None:
    class Shifted(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    layer = TargetAttention(WIDTH, [8], batch_norm=True)
    layer.norms[0] = Shifted(8)
    target, history = rows(generator, USERS), rows(generator, USERS, LENGTH)
    t = target[:, None].expand_as(history)
    h = layer.layers[0](torch.cat([t, history, t - history, t * history], dim=-1))
    h = nn.functional.batch_norm(h.flatten(0, 1), None, None, training=True).view_as(h) + 1
    want = (layer.layers[1](h.relu()) * history).sum(1)
    torch.testing.assert_close(layer(target, history), want)
    assert int(layer.norms[0].num_batches_tracked) == 1


def test_a_layer_without_a_bias_and_parametrizations_run_fused(generator: torch.Generator) -> None:
    layer = TargetAttention(WIDTH, [8, 5], backend="cpu")
    nn.utils.parametrizations.weight_norm(layer.layers[0])
    with torch.no_grad():
        layer.layers[0].parametrizations.weight.original0.mul_(3)
    layer.layers[1] = nn.Linear(8, 5, bias=False)
    target, history = rows(generator, USERS), rows(generator, USERS, LENGTH)
    got, want = layer(target, history), activation_unit(layer, target, history)
    torch.testing.assert_close(got, want)
    same(gradients(layer, got, (target, history)), gradients(layer, want, (target, history)))


def heads(layer: MultiHeadTargetAttention, target: Tensor, history: Tensor) -> Tensor:
    q, k, v = layer.W_q(target)[:, None], layer.W_k(history), layer.W_v(history)
    q, k, v = (x.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return layer.W_o(nn.functional.scaled_dot_product_attention(q, k, v)[:, :, 0].flatten(1))


def biased(linear: nn.Linear) -> nn.Module:
    return nn.Linear(linear.in_features, linear.out_features)


@pytest.mark.parametrize("name", ["W_q", "W_k", "W_v", "W_o"])
@pytest.mark.parametrize("change", [*CHANGES.values(), biased], ids=[*CHANGES, "bias"])
def test_projections(change: Callable[[nn.Linear], nn.Module], name: str, generator: torch.Generator) -> None:
    layer = MultiHeadTargetAttention(WIDTH, 8, num_heads=2)
    setattr(layer, name, change(getattr(layer, name)))
    target, history = rows(generator, USERS), rows(generator, USERS, LENGTH)
    with torch.no_grad():
        first = layer(target, history)
    got, want = layer(target, history), heads(layer, target, history)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(first, want)
    same(gradients(layer, got, (target, history)), gradients(layer, want, (target, history)))


@pytest.mark.parametrize("options", [{"num_heads": 2}, {"top_k": 2, "use_scale": False}], ids=str)
@pytest.mark.parametrize("candidates", [(), (3,)], ids=["one", "several"])
def test_projections_with_a_hook_that_changes_nothing(
    candidates: tuple[int, ...], options: dict[str, Any], generator: torch.Generator
) -> None:
    fused = MultiHeadTargetAttention(WIDTH, **options)
    called = copy.deepcopy(fused)
    called.W_k.register_forward_hook(lambda m, x, y: None)  # type: ignore[union-attr]
    target, history = rows(generator, USERS, *candidates), rows(generator, USERS, LENGTH)
    found = []
    for layer in (fused, called):
        out, weights = layer(target, history, lengths=LENGTHS, return_weights=True)
        found.append([out, weights, *gradients(layer, out, (target, history))])
    same(found[1], found[0])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["gate", "target_projection"])
@pytest.mark.parametrize("change", [*CHANGES.values(), biased], ids=[*CHANGES, "bias"])
def test_gate_and_target_projection(
    change: Callable[[nn.Linear], nn.Module], name: str, full: bool, generator: torch.Generator
) -> None:
    layer = PolarityFusion(WIDTH, num_extra=3, gate_inputs="full" if full else "product", signs=(-0.5, 2))
    nn.init.normal_(layer.target_projection.weight)  # type: ignore[union-attr]
    setattr(layer, name, change(getattr(layer, name)))
    target, tokens = rows(generator, USERS), rows(generator, USERS, LENGTH)
    polarity, extra = (torch.randint(n, (USERS, LENGTH), generator=generator) for n in (2, 3))
    keep = torch.arange(LENGTH) < LENGTHS[:, None]
    got = layer(target, tokens, polarity.where(keep, torch.tensor(99)), lengths=LENGTHS, extra_ids=extra)
    t = target[:, None].expand_as(tokens)
    inputs = torch.cat([tokens, t, tokens * t], dim=-1) if full else tokens * t
    signed = torch.tensor([-0.5, 2.0])[polarity][..., None] * layer.gate(inputs).sigmoid()
    want = tokens + layer.polarity_table[polarity] + signed * layer.target_projection(target)[:, None]
    want = (want + layer.extra_table[extra]) * keep[..., None]
    torch.testing.assert_close(got, want)
    same(gradients(layer, got, (target, tokens)), gradients(layer, want, (target, tokens)))


PARTS: dict[str, Callable[[MixedPolarityAttention], nn.Module]] = {
    "item_embedding": lambda m: m.item_embedding,
    "fusion": lambda m: m.fusion,
    "gate": lambda m: m.fusion.gate,  # type: ignore[return-value]
    "attention": lambda m: m.attention,
    "layer": lambda m: m.attention.layers[0],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("candidates", [(), (3,)], ids=["one", "several"])
@pytest.mark.parametrize("layout", ["lengths", "mask", "offsets"])
def test_from_ids(part: str, candidates: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    """A hook on any part is called, with or without gradients; the rest is as it was."""
    fused = MixedPolarityAttention(ITEMS, WIDTH, [8], num_extra=3, activation="silu", normalize="softmax")
    nn.init.normal_(fused.fusion.target_projection.weight)  # type: ignore[union-attr]
    called = copy.deepcopy(fused)
    seen: list[int] = []
    PARTS[part](called).register_forward_hook(lambda m, x, y: seen.append(1))
    keep = torch.arange(LENGTH) < LENGTHS[:, None]
    where: dict[str, Tensor] = {"lengths": LENGTHS, "mask": keep}
    ids, polarity, extra = (torch.randint(n, (USERS, LENGTH), generator=generator) for n in (ITEMS, 2, 3))
    if layout == "offsets":
        ids, polarity, extra = ids[keep], polarity[keep], extra[keep]
        where["offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)])
    else:
        ids = ids.where(keep, torch.tensor(10**9))
    target = rows(generator, USERS, *candidates)
    found = []
    for layer in (fused, called):
        out, weights = layer(target, ids, polarity, extra_ids=extra, return_weights=True, **{layout: where[layout]})
        with torch.no_grad():
            again = layer(target, ids, polarity, extra_ids=extra, **{layout: where[layout]})
        found.append([out, weights, again, *gradients(layer, out, (target,))])
    same(found[1], found[0])
    each = 3 if candidates and part not in ("item_embedding",) else 1
    assert len(seen) == 2 * each


@pytest.fixture
def global_hook() -> Iterator[list[str]]:
    seen: list[str] = []
    handle = register_module_forward_hook(lambda m, x, y: seen.append(type(m).__name__))
    yield seen
    handle.remove()


def test_hooks_for_all_modules(global_hook: list[str], generator: torch.Generator) -> None:
    layer = TargetAttention(WIDTH, [8])
    with torch.no_grad():
        layer(rows(generator, USERS), rows(generator, USERS, LENGTH))
    assert global_hook == ["Linear", "Linear", "TargetAttention"]


@pytest.mark.parametrize("embedding", [False, True])
def test_dynamic_quantisation(embedding: bool, generator: torch.Generator) -> None:
    quantize = torch.ao.quantization.quantize_dynamic
    ids, polarity = torch.randint(ITEMS, (USERS, LENGTH), generator=generator), torch.ones(USERS, LENGTH).long()
    layer = MixedPolarityAttention(ITEMS, WIDTH, [8]).eval()
    if embedding:
        layer.item_embedding = nn.Embedding.from_pretrained(layer.item_embedding.weight.detach())
    target = rows(generator, USERS).detach()
    kinds = {nn.Embedding: torch.ao.quantization.float_qparams_weight_only_qconfig} if embedding else {nn.Linear}
    quantized = quantize(layer, kinds)
    part = quantized.item_embedding if embedding else quantized.attention.layers[0]
    assert "quantized" in type(part).__module__
    got, want = quantized(target, ids, polarity), layer(target, ids, polarity)
    assert 0 < float((got - want).abs().max()) < 0.05 * float(want.abs().max())
    heads = MultiHeadTargetAttention(WIDTH)
    history = rows(generator, USERS, LENGTH).detach()
    torch.testing.assert_close(quantize(heads)(target, history), heads(target, history), rtol=0.1, atol=0.05)


def test_is_said_and_refused_by_name(caplog: pytest.LogCaptureFixture, generator: torch.Generator) -> None:
    target, history = rows(generator, USERS), rows(generator, USERS, LENGTH)
    layer = TargetAttention(WIDTH, [8])
    layer.layers[0] = adapted(layer.layers[0])
    explained = mixpol_kernels.explain(layer, target, history)
    assert explained.backend == "reference"
    assert "layers[0] is Adapter, not nn.Linear" in explained.reason
    assert "layers[0] is Adapter" in explained.rejected["cpu"]
    mixpol_kernels.backend._said.clear()
    with caplog.at_level("WARNING", logger="mixpol_kernels"):
        layer(target, history), layer(target, history)
    assert [r.getMessage() for r in caplog.records] == [
        "target_attention: using plain PyTorch, which calls the modules, since layers[0] is Adapter, not nn.Linear"
    ]
    for backend in ("cpu", "triton"):
        layer.backend = backend
        with pytest.raises(ValueError, match=rf"backend='{backend}' was requested, but layers\[0\] is Adapter"):
            layer(target, history)
    heads = MultiHeadTargetAttention(WIDTH, backend="cpu")
    heads.W_v.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="but W_v has forward hooks"):
        heads(target, history)
    fusion = PolarityFusion(WIDTH, backend="cpu")
    fusion.target_projection = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(ValueError, match="but target_projection has a bias"):
        fusion(target, history, torch.zeros(USERS, LENGTH, dtype=torch.int64))
    mixed = MixedPolarityAttention(ITEMS, WIDTH, [8], backend="cpu")
    mixed.attention.layers[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"but attention\.layers\[1\] has forward hooks"):
        mixed(target, torch.zeros(USERS, LENGTH, dtype=torch.int64), torch.zeros(USERS, LENGTH, dtype=torch.int64))


def test_bad_input_is_refused_in_the_plain_form_too(generator: torch.Generator) -> None:
    layer = TargetAttention(WIDTH, [8])
    layer.layers[0] = adapted(layer.layers[0])
    target, history = rows(generator, USERS), rows(generator, USERS, LENGTH)
    with pytest.raises(ValueError, match="history is 5 wide and target 6"):
        layer(target, history[..., 1:])
    with pytest.raises(RuntimeError, match=r"lengths\[0\] is 14; expected 0 \.\.\. 7"):
        layer(target, history, lengths=LENGTHS * 2)
    with pytest.raises(TypeError, match=r"history has dtype torch\.float64"):
        layer(target, history.double())


def test_a_plain_module_compiles_whole_and_a_hook_is_called_when_compiled(generator: torch.Generator) -> None:
    layer = TargetAttention(WIDTH, [8])
    target, history = rows(generator, USERS), rows(generator, USERS, LENGTH)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(target, history), layer(target, history))
    layer.layers[0].register_forward_hook(lambda m, x, y: y * 2)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(target, history), activation_unit(layer, target, history))
