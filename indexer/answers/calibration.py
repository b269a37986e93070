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
            "bias": -3.0493,
            "dense": 0.3404,
            "spread": -0.3084,
            "coverage": 1.3315,
            "around": 2.4998,
            "passage": 2.031,
            "known": -4.0994,
            "context": 0.3357,
            "margin": 0.9434,
        },
        "decision": {
            "threshold": 0.47,
        },
    },
}

OTHER: dict[str, dict[str, float]] = {
    "sentence": {
        "bias": -7.5369,
        "spread": 0.7065,
        "coverage": 0.4306,
        "match": 0.865,
        "around": 0.5655,
        "passage": 0.3568,
        "rank": 1.2551,
        "length": 0.144,
    },
    "support": {
        "bias": -7.0496,
        "spread": 0.0467,
        "coverage": 1.4215,
        "around": 3.2236,
        "passage": 2.2374,
        "known": -0.0961,
        "margin": 1.0408,
    },
    "decision": {
        "threshold": 0.49,
    },
}
