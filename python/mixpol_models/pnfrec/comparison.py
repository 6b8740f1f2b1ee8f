"""Runs several models with several seeds, and skips what the store has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mixpol_models.pnfrec.config import PNFRecConfig
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
    """
    for name in models:
        variant(name)
    store, new = Store(folder), []
    todo = [(name, seed) for seed in seeds for name in models if not store.has(name, seed, config)]
    done = len(seeds) * len(models) - len(todo)
    if done:
        say(f"{done} of {len(seeds) * len(models)} runs are in {folder}/ and are not repeated")
    if not todo:
        return []
    split = load_split(config.dataset, config.data)
    say(split.describe())
    for note in split.notes:
        say(note)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    say(explain_head(config.head, pick_device(config.device), dtype))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    for name, seed in todo:
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(f"{name}, seed {seed}", total=None)

            def tick(epoch: int, step: int, steps: int, best: float, bar=bar, task=task, name=name, seed=seed) -> None:
                title = f"{name}, seed {seed}, epoch {epoch}" + (f", best NDCG {best:.4f}" if best >= 0 else "")
                bar.update(task, description=title, completed=step, total=steps)

            run = train(split, config, name, seed, tick)
        record = Record.of(run, name, seed, config, torch.get_num_threads())
        store.write(record, config)
        new.append(record)
        numbers = record.metrics
        say(
            f"{name}, seed {seed}: HR_p {numbers['HR_p']:.4f}, NDCG_p {numbers['NDCG_p']:.4f}, "
            f"ΔHR {numbers['ΔHR']:+.4f}, epoch {record.best_epoch} of {record.epochs}, {record.seconds:.0f} s, "
            f"CPU {record.cpu_seconds:.0f} s"
        )
    return new
