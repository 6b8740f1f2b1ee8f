"""Tables split by TorchRec over two processes take the steps of one process with whole tables."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_models.backbones import build_backbone
from mixpol_models.data import Batch
from mixpol_models.sharded import split_tables, with_torchrec_tables

pytest.importorskip("torchrec", reason="TorchRec is not installed")

RATE, STEPS, USERS, ITEMS = 0.5, 4, 8, 60


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_items": ITEMS, "n_users": 20, "n_contexts": 3}
    made = build_backbone(name, **sizes, embedding_dim=8, tower_units=(16,), fusion="tapf", sparse=False)
    for module in made.modules():  # as it starts the gate gets no gradient
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return made


def batch(step: int, users: slice = slice(None)) -> Batch:
    """Of some users of a step; histories of 0 to 6 events."""
    generator = torch.Generator().manual_seed(step)

    def ids(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    lengths = ids(7, USERS)
    ends = [0, *lengths.cumsum(0).tolist()]
    fields = ids(20, USERS), ids(ITEMS, USERS), ids(3, USERS), ids(2, USERS).float()
    history, polarity = ids(ITEMS, ends[-1]), ids(2, ends[-1]).to(torch.uint8)
    begin, end, _ = users.indices(USERS)
    user, target, context, label = (field[users] for field in fields)
    events = slice(ends[begin], ends[end])
    offsets = torch.tensor(ends[begin : end + 1]) - ends[begin]
    return Batch(
        user=user, target_item=target, context=context, label=label, item_ids=history[events],
        polarity=polarity[events], offsets=offsets,
    )  # fmt: skip


def steps(made: nn.Module, dense: list[nn.Parameter], users: slice = slice(None)) -> list[float]:
    optimizer, losses = torch.optim.SGD(dense, lr=RATE), []
    for step in range(STEPS):
        given = batch(step, users)
        loss = F.binary_cross_entropy_with_logits(made(given), given.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


FORMS = (("din", "row_wise"), ("transformer", "row_wise"), ("din", "table_wise"))


def work(rank: int, folder: str) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = slice(0, USERS // 2) if rank == 0 else slice(USERS // 2, USERS)
    found = []
    for name, sharding in FORMS:
        split = split_tables(
            with_torchrec_tables(model(name), least_rows=1), torch.optim.SGD, {"lr": RATE}, sharding=sharding
        )
        tables = [t for name, t in split.state_dict().items() if "table_item" in name]
        rows = [shard.tensor.shape[0] for table in tables for shard in table.local_shards()]
        dense = [p for n, p in split.named_parameters() if "collection" not in n]
        losses = steps(split, dense, half)
        with torch.no_grad():
            logits = split(batch(99, half)).tolist()
        found.append({"losses": losses, "logits": logits, "rows": rows})
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, list[float]]]]:
    """What two processes found for each of FORMS: starting them takes most of the time."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sharding"), FORMS)
def test_two_processes_take_the_steps_of_one(
    name: str, sharding: str, ranks: list[list[dict[str, list[float]]]]
) -> None:
    found = [each[FORMS.index((name, sharding))] for each in ranks]
    whole = model(name)
    losses = steps(whole, list(whole.parameters()))
    for i, loss in enumerate(losses):
        assert (found[0]["losses"][i] + found[1]["losses"][i]) / 2 == pytest.approx(loss, rel=1e-4)
    with torch.no_grad():
        assert found[0]["logits"] + found[1]["logits"] == pytest.approx(whole(batch(99)).tolist(), rel=1e-3, abs=1e-4)
    if sharding == "row_wise":
        assert [f["rows"] for f in found] == [[ITEMS // 2], [ITEMS // 2]]


@pytest.mark.parametrize("name", ["din", "transformer", "onetrans", "hyformer", "mixformer"])
def test_the_same_rows(name: str) -> None:
    """In one process, before anything is split."""
    plain = model(name).eval()
    swapped = with_torchrec_tables(copy.deepcopy(plain), least_rows=1)
    given = batch(5)
    with torch.no_grad():
        torch.testing.assert_close(swapped(given), plain(given))
        torch.testing.assert_close(swapped.history_attention(given), plain.history_attention(given))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"least_rows was 1000, but the item and user tables have \[20, 60\] rows"):
        with_torchrec_tables(model("din"))
    with pytest.raises(ValueError, match="no TorchRec tables"):
        split_tables(model("din"))
    swapped = with_torchrec_tables(model("din"), least_rows=50)
    with pytest.raises(ValueError, match="sharding was 'columns'"):
        split_tables(swapped, sharding="columns")
    with pytest.raises(RuntimeError, match="no process group"):
        split_tables(swapped)
