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
                "bias": -7.6327,
                "spread": 0.4969,
                "words": 0.8061,
                "coverage": 0.2322,
                "match": 0.4707,
                "around": 0.4846,
                "passage": 0.4478,
                "rank": 1.0562,
                "length": 0.047,
            },
            "support": {
                "bias": -8.299,
                "dense": 2.354,
                "coverage": 0.9711,
                "around": 2.2517,
                "passage": 2.3429,
                "known": 0.13,
                "margin": 1.0244,
            },
            "decision": {
                "threshold": 0.5,
            },
        },
        "other": {
            "sentence": {
                "bias": -6.8233,
                "spread": 1.1378,
                "words": 0.8151,
                "coverage": 0.0573,
                "match": 0.3308,
                "around": 0.118,
                "passage": 0.1224,
                "rank": 1.0706,
                "length": -0.0533,
            },
            "support": {
                "bias": -4.1547,
                "dense": 3.2775,
                "coverage": 1.0872,
                "around": 1.318,
                "passage": 1.423,
                "known": -0.5689,
                "margin": 0.6533,
            },
            "decision": {
                "threshold": 0.59,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.6166,
        "spread": 0.814,
        "coverage": 0.4259,
        "match": 0.7816,
        "around": 0.5982,
        "passage": 0.4306,
        "rank": 1.1665,
        "length": 0.1277,
    },
    "support": {
        "bias": -7.9543,
        "coverage": 1.2358,
        "around": 2.3048,
        "passage": 2.3642,
        "known": -0.3045,
        "margin": 1.2909,
    },
    "decision": {
        "threshold": 0.4,
    },
}
