"""Coefficients of the extractive answers. Written by `python -m benchmarks.answers --fit`, never by hand.

Each calibration has the weights of two logistic models over the features of `generators/extractive.py`:
`sentence` (does this sentence answer?) and `support` (does the collection answer at all?), and the
`threshold` of `support` below which we abstain. `MODELS` has the embedders that were measured; for every
other one, whose cosines may mean anything, `OTHER` uses only features that do not depend on their scale.
"""

MODELS: dict[str, dict[str, dict[str, float]]] = {
    "rwkv-embed-small": {
        "sentence": {
            "bias": -6.6748,
            "dense": -0.0174,
            "spread": 1.0451,
            "coverage": 0.2541,
            "match": 0.5623,
            "around": 0.2708,
            "passage": -0.004,
            "context": -0.0123,
            "rank": 1.5237,
            "length": 0.1137,
        },
        "support": {
            "bias": -3.4573,
            "dense": 0.1393,
            "spread": -0.2869,
            "coverage": 0.979,
            "around": 2.0745,
            "passage": 1.5925,
            "known": -3.8848,
            "context": 0.3439,
            "margin": 1.0861,
        },
        "decision": {
            "threshold": 0.58,
        },
    },
}

OTHER: dict[str, dict[str, float]] = {
    "sentence": {
        "bias": -7.3462,
        "spread": 0.5933,
        "coverage": 0.4218,
        "match": 0.9018,
        "around": 0.5505,
        "passage": 0.3314,
        "rank": 1.2512,
        "length": 0.1428,
    },
    "support": {
        "bias": -6.9233,
        "spread": 0.2819,
        "coverage": 1.2704,
        "around": 3.068,
        "passage": 2.3472,
        "known": -0.503,
        "margin": 1.009,
    },
    "decision": {
        "threshold": 0.45,
    },
}
