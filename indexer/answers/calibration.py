"""Coefficients of the extractive answers. Written by `python -m benchmarks.answers --fit`, never by hand.

`Weights` are those of two logistic models over the features of `features.py`, `sentence` (does this sentence
answer?) and `support` (does the collection answer at all?), and in `decision` the `threshold` of `support`
below which we abstain. `MODELS` has the embedders that were measured, each with two sets: for passages in the
language of the question (`same`) and in another (`other`). Every other embedder, whose cosines may mean
anything and may not cross languages, gets `UNKNOWN_MODEL` for both: it uses only features that do not depend
on their scale.
"""

Weights = dict[str, dict[str, float]]  # sentence/support/decision -> name -> number
Calibration = dict[str, Weights]  # same/other -> weights

MODELS: dict[str, Calibration] = {
    "rwkv-embed-small": {
        "same": {
            "sentence": {
                "bias": -7.6091,
                "spread": 0.4981,
                "words": 0.817,
                "coverage": 0.2307,
                "match": 0.4767,
                "around": 0.4858,
                "passage": 0.446,
                "rank": 1.0718,
                "length": 0.0312,
            },
            "support": {
                "bias": -8.1392,
                "dense": 2.3399,
                "coverage": 1.0353,
                "around": 2.78,
                "passage": 2.423,
                "known": 0.028,
                "margin": 0.947,
            },
            "decision": {
                "threshold": 0.45,
            },
        },
        "other": {
            "sentence": {
                "bias": -6.6231,
                "spread": 1.1261,
                "words": 0.8545,
                "coverage": 0.06,
                "match": 0.3806,
                "around": 0.1249,
                "passage": 0.1272,
                "rank": 0.9209,
                "length": -0.0858,
            },
            "support": {
                "bias": -3.857,
                "dense": 2.8551,
                "coverage": 0.8139,
                "around": 1.0165,
                "passage": 1.1224,
                "known": -0.0814,
                "margin": 0.6291,
            },
            "decision": {
                "threshold": 0.54,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.5749,
        "spread": 0.8189,
        "coverage": 0.4369,
        "match": 0.7938,
        "around": 0.5972,
        "passage": 0.4188,
        "rank": 1.1952,
        "length": 0.1091,
    },
    "support": {
        "bias": -7.8913,
        "coverage": 0.9954,
        "around": 1.9453,
        "passage": 2.4683,
        "known": -0.2735,
        "margin": 1.3073,
    },
    "decision": {
        "threshold": 0.59,
    },
}
