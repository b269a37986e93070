"""Coefficients of the extractive answers. Written by `python -m benchmarks.answers --fit`; do not edit by hand.

Each calibration has the weights of two logistic models over the features of `generators/extractive.py`:
`sentence` (does this sentence answer?) and `support` (does the collection answer at all?), and the
`threshold` of `support` below which we abstain. `MODELS` has the embedders that were measured; for every
other one, whose cosines may mean anything, `OTHER` uses only features that do not depend on their scale.
"""

MODELS: dict[str, dict[str, dict[str, float]]] = {}

OTHER: dict[str, dict[str, float]] = {
    "sentence": {"bias": -4.0, "spread": 0.5, "coverage": 2.0, "around": 1.0, "passage": 1.0, "rank": 1.0, "length": 1.0},
    "support": {"bias": -3.0, "spread": 0.3, "coverage": 3.0, "passage": 2.0, "known": 1.0},
    "decision": {"threshold": 0.5},
}
