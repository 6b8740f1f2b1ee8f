"""torch.export and AOTInductor: the fused ops in exported models, run from Python and from C++ without Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import mixpol_kernels
from mixpol_kernels.library import library

TORCH = Path(torch.__file__).parent
SIZES = [(5, 7, 13), (9, 20, 40), (2, 3, 2)]  # users, padded length, jagged tokens
ITEMS, WIDTH = 50, 8


class Model(nn.Module):
    """Every fused op, with and without the lists that may be empty (slopes, gate)."""

    def __init__(self) -> None:
        super().__init__()
        fused = mixpol_kernels.nn
        self.attention = fused.TargetAttention(WIDTH, [16], normalize="softmax", backend="cpu")
        self.tapf = fused.MixedPolarityAttention(ITEMS, WIDTH, [16], activation="prelu", backend="cpu")
        self.bias = fused.MixedPolarityAttention(ITEMS, WIDTH, [12, 5], fusion="bias", backend="cpu")
        self.fusion = fused.PolarityFusion(WIDTH, "bias", backend="cpu")
        self.embedding = fused.PolarityEmbedding(ITEMS, WIDTH, backend="cpu")
        for parameter in self.parameters():  # some start at zero, and would hide a missing term
            nn.init.normal_(parameter, std=0.3)

    def forward(
        self, target: Tensor, history: Tensor, lengths: Tensor, kind: Tensor, target_ids: Tensor, ids: Tensor,
        polarity: Tensor, offsets: Tensor,
    ) -> Tensor:  # fmt: skip
        tokens = self.fusion(target, history, kind, lengths=lengths)
        pooled = [
            self.attention(target, tokens, lengths=lengths),
            self.tapf(target_ids, ids, polarity, offsets=offsets),
            self.bias(target_ids, ids, polarity, offsets=offsets),
        ]
        known = self.embedding(ids, polarity, offsets=offsets).mean(0)
        return torch.cat([*pooled, known.expand_as(target)], 1).sigmoid()


def inputs(size: tuple[int, int, int]) -> tuple[Tensor, ...]:
    users, length, tokens = size
    offsets = torch.randint(tokens + 1, (users + 1,)).sort().values
    offsets[0], offsets[-1] = 0, tokens
    return (
        torch.randn(users, WIDTH),
        torch.randn(users, length, WIDTH),
        torch.randint(length + 1, (users,)),
        torch.randint(2, (users, length)),
        torch.randint(ITEMS, (users,)),
        torch.randint(ITEMS, (tokens,)),
        torch.randint(2, (tokens,)),
        offsets,
    )


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def exported(model: Model) -> ExportedProgram:
    users, length, tokens = Dim("users", min=2), Dim("length", min=2), Dim("tokens", min=2)
    padded = {0: users, 1: length}
    shapes = ({0: users}, padded, {0: users}, padded, {0: users}, {0: tokens}, {0: tokens}, {0: users + 1})
    with torch.no_grad():
        return torch.export.export(model, inputs(SIZES[0]), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def package(exported: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("package") / "model.pt2"
    return torch._inductor.aoti_compile_and_package(exported, package_path=str(path))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_exported_program(size: tuple[int, int, int], model: Model, exported: ExportedProgram) -> None:
    """One graph for any number of users and tokens, with the fused ops in it."""
    calls = {str(node.target) for node in exported.graph.nodes if "mixpol" in str(node.target)}
    assert calls == {
        f"mixpol.{op}_fwd.default"
        for op in ("target_attention", "mixed_polarity_attention", "polarity_fusion", "polarity_embedding")
    }
    batch = inputs(size)
    with torch.no_grad():
        assert torch.equal(exported.module()(*batch), model(*batch))


@pytest.mark.slow
def test_package_from_python(model: Model, package: str) -> None:
    loaded = torch._inductor.aoti_load_package(package)
    for size in SIZES:
        batch = inputs(size)
        with torch.no_grad():
            torch.testing.assert_close(loaded(*batch), model(*batch))


@pytest.mark.slow
def test_package_from_a_program_without_python(model: Model, package: str, tmp_path: Path) -> None:
    """`libmixpol.so` brings the schemas and the kernels; `_C.so` alone has no schemas, and the program says so."""
    assert library.path is not None
    program = tmp_path / "host"
    subprocess.run(
        [
            os.environ.get("CXX", "c++"), "-std=c++20", str(Path(__file__).with_name("host.cpp")), "-o", str(program),
            f"-I{TORCH}/include", f"-I{TORCH}/include/torch/csrc/api/include", f"-L{TORCH}/lib",
            f"-Wl,-rpath,{TORCH}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl",
        ],
        check=True, timeout=300,
    )  # fmt: skip
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in linked
    assert "libpython" not in linked
    assert "libtorch_python" not in linked
    batch = inputs(SIZES[1])
    torch.save(list(batch), tmp_path / "inputs.pt")

    def run(loaded: Path) -> subprocess.CompletedProcess[str]:
        command = [program, package, loaded, tmp_path / "inputs.pt", tmp_path / "output.pt"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    done = run(library.path.parent / "lib" / "libmixpol.so")
    assert done.returncode == 0, done.stdout + done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "output.pt"), model(*batch))
    alone = run(library.path)
    assert alone.returncode != 0
    assert "schema" in alone.stderr
