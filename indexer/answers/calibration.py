"""Coefficients of the extractive answers. Written by `python -m benchmarks.answers --fit`, never by hand.

Each calibration has the weights of two logistic models over the features of `generators/extractive.py`:
`sentence` (does this sentence answer?) and `support` (does the collection answer at all?), and the
`threshold` of `support` below which we abstain. `MODELS` has the embedders that were measured; for every
other one, whose cosines may mean anything, `OTHER` uses only features that do not depend on their scale.
"""

MODELS: dict[str, dict[str, dict[str, float]]] = {
    "rwkv-embed-small": {
        "sentence": {
            "bias": -6.8322,
            "dense": 0.0256,
            "spread": 1.0991,
            "coverage": 0.26,
            "match": 0.5575,
            "around": 0.2678,
            "passage": -0.0157,
            "context": 0.0077,
            "rank": 1.4648,
            "length": 0.1348,
        },
        "support": {
            "bias": -3.0328,
            "dense": 0.3441,
            "spread": -0.309,
            "coverage": 1.3347,
            "around": 2.5023,
            "passage": 2.0344,
            "known": -4.0968,
            "context": 0.3392,
            "margin": 0.9428,
        },
        "decision": {
            "threshold": 0.47,
        },
    },
}

OTHER: dict[str, dict[str, float]] = {
    "sentence": {
        "bias": -6.8272,
        "spread": 1.1012,
        "coverage": 0.2597,
        "match": 0.5584,
        "around": 0.2681,
        "passage": -0.0149,
        "rank": 1.4651,
        "length": 0.1348,
    },
    "support": {
        "bias": -2.9884,
        "spread": -0.269,
        "coverage": 1.2849,
        "around": 2.4967,
        "passage": 2.0514,
        "known": -4.0514,
        "margin": 0.9619,
    },
    "decision": {
        "threshold": 0.59,
    },
}
