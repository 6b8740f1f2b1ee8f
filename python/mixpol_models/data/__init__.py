"""From an interaction log to jagged training batches.

    log = resolve(data)                                        # or any loader below
    examples = build_examples(log, SequenceConfig(kind="mixed", budget=50))
    for batch in examples.train.loader(batch_size=1024, shuffle=True, seed=0): ...

The rooms:
    log, scan            the checked table; a table that is described but not read yet
    kuairand, kuairec, tencentgr, kuaivideo, movielens (100K), ratings (1M, 20M), synthetic
                         where it comes from: `load_<name>` reads it, `scan_<name>` describes it
    described, columns, rules
                         any other log, by a YAML file; what its columns hold; what counts as positive, in words
    splits               by days, time, users or each user's tail
    sources              which one: by name, or recognised by its files
    download, cache      KuaiRand-Pure into the user's cache; nothing else is downloaded
    store, stream_check  logs larger than memory: built piece by piece on disk, mapped; and what that costs
    locks                one writer a folder, and nothing left behind
    sequence, histories  what an impression may see
    examples, batches    what the model gets
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixpol_models.data.batches import Batch
    from mixpol_models.data.described import load_described
    from mixpol_models.data.examples import Examples, ExampleSet, build_examples
    from mixpol_models.data.kuairand import load_kuairand
    from mixpol_models.data.kuairec import load_kuairec
    from mixpol_models.data.kuaivideo import KuaiVideoColumns, load_kuaivideo
    from mixpol_models.data.log import InteractionLog
    from mixpol_models.data.movielens import SourceUnavailable, load_ml100k
    from mixpol_models.data.ratings import load_ratings
    from mixpol_models.data.sequence import SequenceConfig
    from mixpol_models.data.sources import recognise, resolve
    from mixpol_models.data.splits import DateSplit, TailSplit, TimeSplit, UserSplit
    from mixpol_models.data.store import open_store, write_store
    from mixpol_models.data.synthetic import synthetic_log
    from mixpol_models.data.tencentgr import load_tencentgr

# Where each name is; imported when first asked for, so that a look at the files needs no torch.
_HOMES = {
    "batches": ("Batch",),
    "described": ("load_described",),
    "examples": ("Examples", "ExampleSet", "build_examples"),
    "kuairand": ("load_kuairand",),
    "kuairec": ("load_kuairec",),
    "kuaivideo": ("KuaiVideoColumns", "load_kuaivideo"),
    "log": ("InteractionLog",),
    "movielens": ("SourceUnavailable", "load_ml100k"),
    "ratings": ("load_ratings",),
    "sequence": ("SequenceConfig",),
    "sources": ("recognise", "resolve"),
    "splits": ("DateSplit", "TailSplit", "TimeSplit", "UserSplit"),
    "store": ("open_store", "write_store"),
    "synthetic": ("synthetic_log",),
    "tencentgr": ("load_tencentgr",),
}

__all__ = [
    "Batch",
    "DateSplit",
    "ExampleSet",
    "Examples",
    "InteractionLog",
    "KuaiVideoColumns",
    "SequenceConfig",
    "SourceUnavailable",
    "TailSplit",
    "TimeSplit",
    "UserSplit",
    "build_examples",
    "load_described",
    "load_kuairand",
    "load_kuairec",
    "load_kuaivideo",
    "load_ml100k",
    "load_ratings",
    "load_tencentgr",
    "open_store",
    "recognise",
    "resolve",
    "synthetic_log",
    "write_store",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
