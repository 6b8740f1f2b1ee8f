"""`PNFRecConfig`: settings of a PNFRec run, from defaults and a YAML file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field

from mixpol_models.configuration import load

Dataset = Literal["ml-1m", "ml-20m", "toys", "sports", "zvuk", "kion"]
DATASETS: tuple[str, ...] = get_args(Dataset)

# What changes where and how fast a run goes, and not what it computes.
_ELSEWHERE = {"data", "device", "head"}


class PNFRecConfig(BaseModel):
    """Settings shared by all models of a comparison. Symbols as in Ivanova et al., arXiv 2508.14786.

    Attributes:
        dataset: which preparation (threshold, columns) the data get.
        data: file or folder; None looks for ml_1m under MIXPOL_DATA.
        width: d, of item vectors and encoders.
        blocks, heads, dropout: of each encoder; dropout is used on attention weights too.
        max_length: most inputs of a positive or negative stream.
        mixed_length: most inputs of a sequence of both polarities (published: 50 or 100, which is not known).
        own_positions: a position table per encoder, as the paper says. False shares one, as its code does.
        twin_init: reset the seed before every module, as the published code does: layers of one shape start equal,
            within and across encoders.
        negative_weight: a, of the negative stream's cross entropy.
        contrast_weight: b, of the contrastive term.
        similarity, contrast_reduction: "dot" and "mean" are the published code's form, "cosine" and "sum" the paper's.
        infonce_weight, temperature, pairing: of `sasrec_c`; see `infonce`.
        epochs, patience: at most so many, and so many without a better validation NDCG@10.
        batch_size: users per step.
        learning_rate: of Adam.
        index_zero: whether the padding row may be recommended; see `rank_targets`.
        precision: "bf16" is autocast for the encoders and a bf16 head.
        device: where to train.
        head: who computes the cross entropy over the catalogue; see `choose_head`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Dataset = "ml-1m"
    data: str | None = None

    width: int = Field(64, ge=1)
    blocks: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    max_length: int = Field(50, ge=1)
    mixed_length: int = Field(100, ge=1)
    own_positions: bool = False
    twin_init: bool = True

    negative_weight: float = Field(0.45, ge=0)
    contrast_weight: float = Field(0.25, ge=0)
    similarity: Literal["dot", "cosine"] = "dot"
    contrast_reduction: Literal["mean", "sum"] = "mean"
    infonce_weight: float = Field(0.25, ge=0)
    temperature: float = Field(0.1, gt=0)
    pairing: Literal["published", "fixed"] = "published"

    epochs: int = Field(100, ge=1)
    patience: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    index_zero: Literal["removed", "published"] = "removed"

    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    head: Literal["auto", "chunked", "liger", "cut_cross_entropy"] = "auto"

    def digest(self) -> str:
        """8 hex digits that tell settings with different results apart."""
        settings = self.model_dump(mode="json", exclude=_ELSEWHERE)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """The whole configuration; `load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(file: str | Path, **overrides: Any) -> PNFRecConfig:
    """Defaults, overridden by a YAML file, overridden by what is given here and not None.

    Args:
        file: path, or the name of a configuration that comes with the package: ml1m_published, ml1m_cpu.

    Raises:
        ValueError: no such file, not a mapping, unknown names, or values out of range.
    """
    return load(PNFRecConfig, file, "pnfrec", overrides)
