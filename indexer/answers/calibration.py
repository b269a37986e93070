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
                "bias": -7.6354,
                "spread": 0.5157,
                "words": 0.8039,
                "coverage": 0.243,
                "match": 0.4688,
                "around": 0.49,
                "passage": 0.4513,
                "rank": 1.0737,
                "length": 0.0365,
            },
            "support": {
                "bias": -8.5239,
                "dense": 2.0665,
                "coverage": 0.8964,
                "around": 2.3275,
                "passage": 2.1657,
                "known": 0.7239,
                "margin": 1.0278,
            },
            "decision": {
                "threshold": 0.45,
            },
        },
        "other": {
            "sentence": {
                "bias": -6.8081,
                "spread": 1.1264,
                "words": 0.8719,
                "coverage": 0.0591,
                "match": 0.3813,
                "around": 0.1257,
                "passage": 0.1273,
                "rank": 0.966,
                "length": -0.0572,
            },
            "support": {
                "bias": -3.9512,
                "dense": 3.6998,
                "coverage": 1.3026,
                "around": 1.1821,
                "passage": 1.2371,
                "known": -0.392,
                "margin": 0.5798,
            },
            "decision": {
                "threshold": 0.61,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.6189,
        "spread": 0.8276,
        "coverage": 0.4353,
        "match": 0.7853,
        "around": 0.6041,
        "passage": 0.4305,
        "rank": 1.1969,
        "length": 0.1171,
    },
    "support": {
        "bias": -8.544,
        "coverage": 0.9508,
        "around": 1.7214,
        "passage": 2.3156,
        "known": 0.1779,
        "margin": 1.4232,
    },
    "decision": {
        "threshold": 0.49,
    },
}
