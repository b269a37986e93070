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
                "bias": -7.6861,
                "spread": 0.4996,
                "words": 0.8449,
                "coverage": 0.2414,
                "match": 0.481,
                "around": 0.4777,
                "passage": 0.3981,
                "rank": 1.0941,
                "length": 0.0444,
            },
            "support": {
                "bias": -8.3292,
                "dense": 4.06,
                "coverage": 0.9877,
                "around": 2.0861,
                "passage": 2.0939,
                "known": -0.1188,
                "margin": 0.9862,
            },
            "decision": {
                "threshold": 0.42,
            },
        },
        "other": {
            "sentence": {
                "bias": -7.0793,
                "spread": 1.0457,
                "words": 0.8671,
                "coverage": 0.0496,
                "match": 0.2898,
                "around": 0.1027,
                "passage": 0.1026,
                "rank": 1.1317,
                "length": -0.061,
            },
            "support": {
                "bias": -5.3628,
                "dense": 3.8213,
                "coverage": 0.9251,
                "around": 1.0318,
                "passage": 1.0479,
                "known": -0.2447,
                "margin": 0.7879,
            },
            "decision": {
                "threshold": 0.49,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.6246,
        "spread": 0.8125,
        "coverage": 0.4187,
        "match": 0.7757,
        "around": 0.5902,
        "passage": 0.3841,
        "rank": 1.2001,
        "length": 0.1309,
    },
    "support": {
        "bias": -8.469,
        "coverage": 0.693,
        "around": 1.7489,
        "passage": 1.9862,
        "known": 0.089,
        "margin": 1.4609,
    },
    "decision": {
        "threshold": 0.42,
    },
}
