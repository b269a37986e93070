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
                "bias": -7.5932,
                "spread": 0.5105,
                "words": 0.8093,
                "coverage": 0.2462,
                "match": 0.474,
                "around": 0.4955,
                "passage": 0.4544,
                "rank": 1.0186,
                "length": 0.0386,
            },
            "support": {
                "bias": -7.9019,
                "dense": 2.3596,
                "coverage": 0.9103,
                "around": 2.5802,
                "passage": 2.4488,
                "known": 0.2055,
                "margin": 0.9098,
            },
            "decision": {
                "threshold": 0.53,
            },
        },
        "other": {
            "sentence": {
                "bias": -6.7209,
                "spread": 1.1399,
                "words": 0.8673,
                "coverage": 0.0544,
                "match": 0.366,
                "around": 0.1256,
                "passage": 0.1256,
                "rank": 0.8901,
                "length": -0.0621,
            },
            "support": {
                "bias": -4.0291,
                "dense": 3.64,
                "coverage": 1.2439,
                "around": 1.1328,
                "passage": 1.1843,
                "known": -0.2539,
                "margin": 0.6057,
            },
            "decision": {
                "threshold": 0.64,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.5611,
        "spread": 0.8269,
        "coverage": 0.4494,
        "match": 0.783,
        "around": 0.6109,
        "passage": 0.4307,
        "rank": 1.1458,
        "length": 0.1173,
    },
    "support": {
        "bias": -8.131,
        "coverage": 0.9211,
        "around": 1.7853,
        "passage": 2.4141,
        "known": -0.1638,
        "margin": 1.37,
    },
    "decision": {
        "threshold": 0.51,
    },
}
