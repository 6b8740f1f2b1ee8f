"""From an interaction log to jagged training batches.

    log = resolve(data)                                        # or any loader below
    examples = build_examples(log, SequenceConfig(kind="mixed", budget=50))
    for batch in examples.train.loader(batch_size=1024, shuffle=True, seed=0): ...

Modules:
    log, scan            the checked table; a table that is described but not read yet
    kuairand, kuairec, tencentgr, kuaivideo, movielens (100K), ratings (1M, 20M), synthetic
                         where it comes from: `load_<name>` reads it, `scan_<name>` describes it
    described, columns, rules
                         any other log, by a YAML file; types of its columns; polarity rules
    splits               by days, time, users or each user's tail
    sources              the log of a run: by name, or recognised by its files
    download, cache      KuaiRand-Pure into the user's cache; nothing else is downloaded
    store, store_build, store_format, stream_check
                         logs larger than memory: built piece by piece on disk, mapped; and what that costs
    locks                one writer a folder, and nothing left behind
    sequence, histories  what an impression may see
    examples, batches    what the model gets
"""

# ruff: noqa: F401, imported when they are used, so that a look at the files needs no torch
from __future__ import annotations

from typing import TYPE_CHECKING

from mixpol_models.lazy import lazy_names

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

__getattr__, __all__ = lazy_names(__name__, __file__)
