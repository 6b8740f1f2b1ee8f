"""Published results: the table in the README of the authors' repository (Veronika-Ivanova/pnfrec, state 3207cb3).

Mean and standard deviation over five seeds; time in s, on their GPU, to the end and (best epoch). The README's legend
gives the three PNFRec columns permuted names; here they are named by what the times and the run script say they are.
"""

from __future__ import annotations

METRICS = ("HR_p", "NDCG_p", "ΔHR", "ΔNDCG")
COLUMNS = ("pnfrec", "pnfrec_pn", "pnfrec_pc", "sasrec_p", "sasrec_c", "sasrec")

_Pair = tuple[float, float]

PUBLISHED: dict[str, dict[str, tuple[_Pair, ...]]] = {
    "ml-1m": {
        "HR_p": ((.1716, .0083), (.1677, .0131), (.1612, .0022), (.1587, .0112), (.1638, .0083), (.1683, .0089)),
        "NDCG_p": ((.1041, .0026), (.1024, .0069), (.0921, .0047), (.0935, .0086), (.0892, .0053), (.0927, .0034)),
        "ΔHR": ((.0724, .0152), (.0644, .0148), (.0760, .0109), (.0726, .0170), (-.0213, .0044), (-.0160, .0061)),
        "ΔNDCG": ((.0484, .0055), (.0467, .0068), (.0435, .0047), (.0449, .0052), (-.0174, .0036), (-.0116, .0064)),
    },
    "ml-20m": {
        "HR_p": ((.0933, .0045), (.0930, .0028), (.0920, .0033), (.0873, .0053), (.0893, .0014), (.0902, .0026)),
        "NDCG_p": ((.0541, .0025), (.0544, .0015), (.0538, .0009), (.0511, .0032), (.0541, .0010), (.0545, .0011)),
        "ΔHR": ((.0288, .0085), (.0265, .0071), (.0278, .0033), (.0276, .0047), (.0016, .0022), (.0043, .0050)),
        "ΔNDCG": ((.0168, .0046), (.0162, .0032), (.0176, .0034), (.0174, .0042), (.0007, .0023), (.0028, .0029)),
    },
    "toys": {
        "HR_p": ((.1109, .0083), (.1119, .0072), (.1008, .0067), (.0998, .0039), (.1279, .0041), (.1275, .0043)),
        "NDCG_p": ((.0731, .0036), (.0743, .0027), (.0656, .0034), (.0661, .0035), (.0795, .0019), (.0804, .0014)),
        "ΔHR": ((.0419, .0175), (.0429, .0156), (.0364, .0100), (.0354, .0037), (-.0284, .0096), (-.0425, .0116)),
        "ΔNDCG": ((.0377, .0069), (.0385, .0060), (.0295, .0025), (.0290, .0024), (-.0191, .0079), (-.0256, .0078)),
    },
    "kion": {
        "HR_p": ((.2157, .0005), (.2161, .0012), (.2129, .0011), (.2135, .0020), (.2182, .0011), (.2180, .0014)),
        "NDCG_p": ((.1310, .0005), (.1313, .0006), (.1293, .0006), (.1300, .0011), (.1308, .0009), (.1316, .0009)),
        "ΔHR": ((.1036, .0016), (.1034, .0023), (.1026, .0024), (.1024, .0019), (.0727, .0018), (.0719, .0047)),
        "ΔNDCG": ((.0700, .0010), (.0701, .0013), (.0684, .0011), (.0689, .0009), (.0506, .0014), (.0521, .0012)),
    },
}  # fmt: skip


def published(dataset: str, model: str, metric: str) -> tuple[float, float] | None:
    """(mean, standard deviation over seeds), None where nothing was published."""
    if dataset not in PUBLISHED or model not in COLUMNS or metric not in METRICS:
        return None
    return PUBLISHED[dataset][metric][COLUMNS.index(model)]
