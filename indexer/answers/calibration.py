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
                "bias": -7.6256,
                "spread": 0.4875,
                "words": 0.817,
                "coverage": 0.2385,
                "match": 0.4821,
                "around": 0.4932,
                "passage": 0.4512,
                "rank": 1.0812,
                "length": 0.0391,
            },
            "support": {
                "bias": -7.9218,
                "dense": 2.4193,
                "coverage": 1.0421,
                "around": 2.7705,
                "passage": 2.3858,
                "known": -0.0526,
                "margin": 0.9244,
            },
            "decision": {
                "threshold": 0.44,
            },
        },
        "other": {
            "sentence": {
                "bias": -6.7176,
                "spread": 1.1329,
                "words": 0.858,
                "coverage": 0.0527,
                "match": 0.3709,
                "around": 0.1251,
                "passage": 0.126,
                "rank": 0.8853,
                "length": -0.0622,
            },
            "support": {
                "bias": -3.8945,
                "dense": 3.6696,
                "coverage": 1.2783,
                "around": 1.1888,
                "passage": 1.2546,
                "known": -0.4241,
                "margin": 0.5786,
            },
            "decision": {
                "threshold": 0.61,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.5892,
        "spread": 0.8091,
        "coverage": 0.4431,
        "match": 0.7956,
        "around": 0.6081,
        "passage": 0.4274,
        "rank": 1.1891,
        "length": 0.1212,
    },
    "support": {
        "bias": -8.0814,
        "coverage": 0.9971,
        "around": 1.7694,
        "passage": 2.6772,
        "known": -0.561,
        "margin": 1.3814,
    },
    "decision": {
        "threshold": 0.44,
    },
}
