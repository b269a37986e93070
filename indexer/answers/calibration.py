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
                "bias": -7.8741,
                "spread": 0.5642,
                "words": 0.9482,
                "coverage": 0.2179,
                "match": 0.4273,
                "around": 0.4738,
                "passage": 0.4204,
                "rank": 1.036,
                "length": 0.046,
            },
            "support": {
                "bias": -9.1621,
                "dense": 4.073,
                "coverage": 0.5034,
                "around": 2.8649,
                "passage": 2.171,
                "known": 0.1077,
                "margin": 1.0149,
            },
            "decision": {
                "threshold": 0.35,
            },
        },
        "other": {
            "sentence": {
                "bias": -7.388,
                "spread": 0.9485,
                "words": 1.0615,
                "coverage": 0.042,
                "match": 0.3211,
                "around": 0.0942,
                "passage": 0.0975,
                "rank": 1.1451,
                "length": -0.0472,
            },
            "support": {
                "bias": -7.1109,
                "dense": 3.8203,
                "coverage": 0.7351,
                "around": 1.0887,
                "passage": 0.9274,
                "known": -0.2433,
                "margin": 1.0296,
            },
            "decision": {
                "threshold": 0.42,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.6899,
        "spread": 0.9061,
        "coverage": 0.4132,
        "match": 0.7396,
        "around": 0.5916,
        "passage": 0.3967,
        "rank": 1.1477,
        "length": 0.1369,
    },
    "support": {
        "bias": -8.2967,
        "coverage": 0.9367,
        "around": 2.1062,
        "passage": 2.3178,
        "known": 0.1204,
        "margin": 1.307,
    },
    "decision": {
        "threshold": 0.34,
    },
}
