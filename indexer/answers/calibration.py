"""Coefficients of the extractive answers. Written by `python -m benchmarks.answers --fit`, never by hand.

Each calibration has the weights of two logistic models over the features of `generators/extractive.py`:
`sentence` (does this sentence answer?) and `support` (does the collection answer at all?), and the
`threshold` of `support` below which we abstain. `MODELS` has the embedders that were measured; for every
other one, whose cosines may mean anything, `OTHER` uses only features that do not depend on their scale.
"""

MODELS: dict[str, dict[str, dict[str, float]]] = {
    "hashed": {
        "sentence": {
            "bias": -6.6211,
            "dense": 0.0946,
            "spread": 1.0844,
            "coverage": 0.8738,
            "around": 0.9502,
            "passage": 0.7839,
            "context": 0.1937,
            "rank": 1.1999,
            "length": 0.0542,
        },
        "support": {
            "bias": -2.0655,
            "dense": -1.5494,
            "spread": -0.3937,
            "coverage": 1.8988,
            "around": 2.3528,
            "passage": 1.7385,
            "known": -2.2875,
            "context": -1.5274,
            "margin": 0.9468,
        },
        "decision": {
            "threshold": 0.6,
        },
    },
}

OTHER: dict[str, dict[str, float]] = {
    "sentence": {
        "bias": -6.5852,
        "spread": 1.0962,
        "coverage": 0.883,
        "around": 0.9658,
        "passage": 0.8067,
        "rank": 1.2069,
        "length": 0.0538,
    },
    "support": {
        "bias": -2.1204,
        "spread": -0.5005,
        "coverage": 1.7852,
        "around": 2.2143,
        "passage": 1.5506,
        "known": -2.8178,
        "margin": 0.9007,
    },
    "decision": {
        "threshold": 0.63,
    },
}
