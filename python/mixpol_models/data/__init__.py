"""From an interaction log to jagged training batches.

    log = resolve(data)                                        # or any loader below
    examples = build_examples(log, SequenceConfig(kind="mixed", budget=50))
    for batch in examples.train.loader(batch_size=1024, shuffle=True, seed=0): ...

The rooms: `log` (the checked table), `kuairand`, `movielens`, `synthetic` (where it comes from), `sources`
(which one), `download` (KuaiRand-Pure into the cache), `sequence` and `histories` (what an impression may
see), `examples` and `batches` (what the model gets).
"""

from mixpol_models.data.batches import Batch
from mixpol_models.data.examples import Examples, ExampleSet, build_examples
from mixpol_models.data.kuairand import DateSplit, load_kuairand
from mixpol_models.data.log import InteractionLog
from mixpol_models.data.movielens import SourceUnavailable, load_ml100k
from mixpol_models.data.sequence import SequenceConfig
from mixpol_models.data.sources import resolve
from mixpol_models.data.synthetic import synthetic_log

__all__ = [
    "Batch",
    "DateSplit",
    "ExampleSet",
    "Examples",
    "InteractionLog",
    "SequenceConfig",
    "SourceUnavailable",
    "build_examples",
    "load_kuairand",
    "load_ml100k",
    "resolve",
    "synthetic_log",
]
