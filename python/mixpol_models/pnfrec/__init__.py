"""PNFRec (Ivanova, Frolov, Vasilev, arXiv 2508.14786) and its relatives as reference models.

    split = load_split("ml-1m", "data/ml_1m")
    metrics(train(split, load_config("ml1m_cpu"), "pnfrec", seed=0).ranking)["HR_p"]

The rooms: `config`; `sources`, `preparation`, `events` (files to a split); `streams` (training sequences);
`variants`, `model`, `contrast`, `linear_cross_entropy`, `objective` (what is trained); `training`, `evaluation`;
`store`, `comparison`, `intervals`, `published`, `report` (many runs); `reference` and `speed` (the plain form, and how
much faster this one is).
"""
