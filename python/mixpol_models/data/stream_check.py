"""Cost of a store: writes a large synthetic log, builds its store in a process of its own, measures it.

    python -m mixpol_models.data.stream_check --events 100_000_000 --folder DIR

Prints one JSON object. The parts of the source are drawn one by one, so that nothing here holds the log either.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

_PART = 5_000_000
_FILES = "events-*.parquet"


def write_events(folder: Path, events: int, *, seed: int = 0, part: int = _PART) -> Path:
    """Writes a log in random order of users and times, and its description.

    Users and items follow Zipf-like laws (rank^-0.5: the busiest of n users has about √n times the mean), times are
    uniform over 30 days, a third is positive; one row in a hundred repeats the row before it.

    Args:
        folder: made if it is not there.
        events: rows; a user has 200 on average, and there is an item per 100 rows.
        seed: same seed, same log.
        part: rows per file.

    Returns:
        The YAML file, for `scan_described`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_users, n_items = max(events // 200, 1), max(events // 100, 1)
    for k, start in enumerate(range(0, events, part)):
        rng = np.random.default_rng([seed, k])
        n = min(part, events - start)
        frame = pl.DataFrame(
            {
                "user": (n_users * rng.random(n) ** 2).astype(np.int64) * 7 + 3,
                "item": (n_items * rng.random(n) ** 2).astype(np.int64) * 5 + 1,
                "time": 1_650_000_000_000 + rng.integers(0, 30 * 86_400_000, n),
                "watched": rng.random(n, dtype=np.float32) * 1.5,
                "page": rng.integers(0, 5, n),
            }
        )
        again = pl.Series(np.arange(n) - (np.arange(n) % 100 == 99))
        frame[again].write_parquet(folder / f"events-{k:04d}.parquet", compression="lz4")
    path = folder / "log.yaml"
    path.write_text(
        f"name: {events:,} drawn events\nfiles: {_FILES}\n"
        "columns: {user: user, item: item, time: time, context: page}\n"
        "polarity: 'watched < 1: negative'\ntime_unit: ms\n"
    )
    return path


def measure(folder: Path, events: int, *, chunk_events: int = 2_000_000) -> dict[str, float | int | str]:
    """Builds and opens the store of `events` drawn events in `folder`, each in a process of its own.

    Returns:
        Seconds, events per second, and peak resident memory [bytes] of a child that imports alone, of the build, and of
        a reader of 100 batches; sizes on disk [bytes].
    """
    source, target = folder / "source", folder / "store"
    description = write_events(source, events)
    result: dict[str, float | int | str] = {"events": events, "chunk_events": chunk_events}
    for step in ("import", "build", "read"):
        command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "mixpol_models.data.stream_check"]
        command += ["--step", step, "--source", str(description), "--folder", str(target)]
        command += ["--chunk-events", str(chunk_events)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result |= {f"{step}_{name}": value for name, value in json.loads(done.stdout).items()}
    result["build_events_per_second"] = round(events / float(result["build_seconds"]))
    for name, place in (("source", source), ("store", target)):
        result[f"{name}_bytes"] = sum(file.stat().st_size for file in place.iterdir())
    return result


def _step(step: str, source: str, folder: Path, chunk_events: int) -> dict[str, float | int]:
    """One measured step, in the child."""
    from mixpol_models.data.described import scan_described
    from mixpol_models.data.sequence import SequenceConfig
    from mixpol_models.data.store import open_store, write_store

    start = time.perf_counter()
    extra: dict[str, int] = {}
    if step == "build":
        write_store(
            scan_described(source), folder, chunk_events=chunk_events, say=lambda line: print(line, file=sys.stderr)
        )
    elif step == "read":
        log = open_store(folder)
        store = log.history_store()
        rng = np.random.default_rng(0)
        for _ in range(100):
            rows = np.sort(rng.integers(0, len(store.item), 4096))
            item, _, _ = store.select(rows, SequenceConfig(budget=50)).gather(np.arange(len(rows)))
            extra["history_events"] = extra.get("history_events", 0) + len(item)
        extra |= {"rows": log.frame.height, "duplicates": log.n_duplicates}
    seconds = round(time.perf_counter() - start, 2)
    return {"seconds": seconds} | _peak() | extra


def _peak() -> dict[str, int]:
    """Peak resident memory of this process, and of it what is not mapped from files (Linux alone knows)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    # Not ru_maxrss, which a child takes over from its parent.
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {
        "peak_bytes": int(lines["VmHWM"].split()[0]) * 1024,
        "final_anonymous_bytes": int(lines["RssAnon"].split()[0]) * 1024,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Builds a large drawn log's store and measures it.")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="Gets source/ and store/: about 70 bytes an event.")
    parser.add_argument("--chunk-events", type=int, default=2_000_000)
    parser.add_argument("--keep", action="store_true", help="Leave source/ and store/ there.")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(_step(args.step, args.source, args.folder, args.chunk_events)))
        return
    if args.events < 1:
        parser.error(f"--events is {args.events}, expected at least 1")
    try:
        print(json.dumps(measure(args.folder, args.events, chunk_events=args.chunk_events), indent=1))
    finally:
        if not args.keep:
            for name in ("source", "store"):
                shutil.rmtree(args.folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
