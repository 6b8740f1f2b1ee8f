"""A skip must speak against its own group, for the others, and not at all when the effect is off."""

from __future__ import annotations

import numpy as np
import pytest

from mixpol_models.data import SequenceConfig, build_examples
from mixpol_models.data.planted import planted_log

GROUPS = 4


def evidence(effect: bool) -> tuple[dict[str, float], np.ndarray]:
    """Correlation of the label with counts in the last 10 events, and of events by (same group, polarity)."""
    log = planted_log(effect=effect, n_users=1500)
    examples = build_examples(log, SequenceConfig(budget=10)).test
    batch = examples[np.arange(len(examples))]
    owner = np.repeat(np.arange(len(batch)), np.diff(batch.offsets.numpy()))
    same = batch.item_ids.numpy() % GROUPS == batch.target_item.numpy()[owner] % GROUPS
    skip = batch.polarity.numpy() == 0
    label = batch.label.numpy()

    def count(events: np.ndarray) -> float:
        return float(np.corrcoef(np.bincount(owner, events, len(batch)), label)[0, 1])

    found = {
        "same skips": count(same & skip),
        "other skips": count(~same & skip),
        "skips": count(skip),
        "same events": count(same),
        "same likes": count(same & ~skip),
    }
    return found, label


def test_the_effect() -> None:
    found, label = evidence(effect=True)
    noise = 3 / np.sqrt(len(label))
    assert found["same skips"] < -0.25
    assert found["other skips"] > 0.1
    assert abs(found["skips"]) < 2 * noise
    assert found["same skips"] < found["same events"] - 0.03
    assert found["same events"] < -0.1
    assert abs(found["same likes"]) < 0.7 * abs(found["same skips"])
    assert 0.2 < label.mean() < 0.4


def test_without_the_effect_no_history_helps() -> None:
    found, label = evidence(effect=False)
    assert max(map(abs, found.values())) < 3.5 / np.sqrt(len(label))


def test_same_seed_same_log() -> None:
    assert planted_log(1, n_users=20).frame.equals(planted_log(1, n_users=20).frame)
    assert not planted_log(1, n_users=20).frame.equals(planted_log(2, n_users=20).frame)
    with pytest.raises(ValueError, match="length is 3, expected at least 10"):
        planted_log(length=3)
