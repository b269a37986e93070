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
                "bias": -7.6146,
                "spread": 0.4647,
                "words": 0.8198,
                "coverage": 0.2508,
                "match": 0.4604,
                "around": 0.4929,
                "passage": 0.4338,
                "rank": 1.1294,
                "length": 0.0511,
            },
            "support": {
                "bias": -8.207,
                "dense": 3.3038,
                "coverage": 1.0101,
                "around": 2.5839,
                "passage": 1.904,
                "known": 0.3651,
                "margin": 0.9568,
            },
            "decision": {
                "threshold": 0.51,
            },
        },
        "other": {
            "sentence": {
                "bias": -6.8778,
                "spread": 1.106,
                "words": 0.8334,
                "coverage": 0.0429,
                "match": 0.2689,
                "around": 0.101,
                "passage": 0.1022,
                "rank": 1.0753,
                "length": -0.0572,
            },
            "support": {
                "bias": -4.5907,
                "dense": 3.3835,
                "coverage": 0.992,
                "around": 1.0166,
                "passage": 0.9093,
                "known": -0.0387,
                "margin": 0.7048,
            },
            "decision": {
                "threshold": 0.53,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.6078,
        "spread": 0.7628,
        "coverage": 0.4349,
        "match": 0.781,
        "around": 0.5993,
        "passage": 0.4167,
        "rank": 1.2437,
        "length": 0.1426,
    },
    "support": {
        "bias": -8.2551,
        "coverage": 1.208,
        "around": 2.1046,
        "passage": 1.8593,
        "known": -0.0133,
        "margin": 1.4038,
    },
    "decision": {
        "threshold": 0.45,
    },
}
