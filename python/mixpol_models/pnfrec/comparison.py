"""Runs several models with several seeds, and skips what the store has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mixpol_models import stopping
from mixpol_models.data.locks import locked
from mixpol_models.files import check_output_folder
from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.events import Split
from mixpol_models.pnfrec.linear_cross_entropy import explain_head
from mixpol_models.pnfrec.sources import load_split
from mixpol_models.pnfrec.store import Record, Store
from mixpol_models.pnfrec.training import pick_device, train
from mixpol_models.pnfrec.variants import variant


def run_all(
    config: PNFRecConfig,
    models: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    say: Callable[[str], None] = print,
) -> list[Record]:
    """Trains what is not finished yet, seed by seed, so that a stop leaves whole comparisons.

    Args:
        config: settings.
        models: names of variants.
        seeds: of each.
        folder: of the store.
        say: gets a line for every run.

    Returns:
        the new records.

    Raises:
        ValueError: unknown or repeated models or seeds, no GPU where one is asked for, or no data.
        RuntimeError: another process writes to the folder.
    """
    for name in models:
        variant(name)
    for name, values in (("models", models), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} was {list(values)}, expected one or more different ones")
    if min(seeds) < 0:
        raise ValueError(f"seeds was {list(seeds)}, expected 0 or more")
    check_output_folder(folder)
    device = pick_device(config.device)
    store = Store(folder)
    todo = [(name, seed) for seed in seeds for name in models if not store.has(name, seed, config)]
    done = len(seeds) * len(models) - len(todo)
    if done:
        say(f"{done} of {len(seeds) * len(models)} runs are in {folder}/ and are not repeated")
    if not todo:
        return []
    stopping.note(f"{folder}/ has {done} of {done + len(todo)} runs")
    split = load_split(config.dataset, config.data)
    say(split.describe())
    for note in split.notes:
        say(note)
    with locked(folder, "mixpol pnfrec run"):
        return _trained(split, todo, done, config, store, device, say)


def _trained(
    split: Split,
    todo: Sequence[tuple[str, int]],
    done: int,
    config: PNFRecConfig,
    store: Store,
    device: torch.device,
    say: Callable[[str], None],
) -> list[Record]:
    folder, total, new = store.folder, done + len(todo), []
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    say(explain_head(config.head, device, dtype))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    for name, seed in todo:
        if not sys.stdout.isatty():
            say(f"training {name}, seed {seed}")
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(f"{name}, seed {seed}", total=None)

            def tick(epoch: int, step: int, steps: int, best: float, bar=bar, task=task, name=name, seed=seed) -> None:
                stopping.check()
                title = f"{name}, seed {seed}, epoch {epoch}" + (f", best NDCG {best:.4f}" if best >= 0 else "")
                bar.update(task, description=title, completed=step, total=steps)

            run = train(split, config, name, seed, tick)
        record = Record.of(run, name, seed, config, torch.get_num_threads())
        store.write(record, config)
        new.append(record)
        stopping.note(f"{folder}/ has {done + len(new)} of {total} runs")
        numbers = record.metrics
        say(
            f"{name}, seed {seed}: HR_p {numbers['HR_p']:.4f}, NDCG_p {numbers['NDCG_p']:.4f}, "
            f"ΔHR {numbers['ΔHR']:+.4f}, epoch {record.best_epoch} of {record.epochs}, {record.seconds:.0f} s, "
            f"CPU {record.cpu_seconds:.0f} s"
        )
    return new
