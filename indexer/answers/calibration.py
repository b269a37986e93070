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
                "bias": -7.8038,
                "spread": 0.4709,
                "words": 0.931,
                "coverage": 0.2157,
                "match": 0.4671,
                "around": 0.4626,
                "passage": 0.4178,
                "rank": 1.0675,
                "length": 0.0504,
            },
            "support": {
                "bias": -8.4286,
                "dense": 4.222,
                "coverage": 0.9806,
                "around": 2.4297,
                "passage": 1.9634,
                "known": -0.0794,
                "margin": 0.939,
            },
            "decision": {
                "threshold": 0.49,
            },
        },
        "other": {
            "sentence": {
                "bias": -7.2189,
                "spread": 0.9634,
                "words": 1.0167,
                "coverage": 0.0482,
                "match": 0.362,
                "around": 0.1052,
                "passage": 0.1088,
                "rank": 1.0617,
                "length": -0.0568,
            },
            "support": {
                "bias": -6.4254,
                "dense": 4.1697,
                "coverage": 0.8248,
                "around": 1.3117,
                "passage": 1.2429,
                "known": -0.0495,
                "margin": 0.92,
            },
            "decision": {
                "threshold": 0.54,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.6536,
        "spread": 0.8135,
        "coverage": 0.4115,
        "match": 0.7824,
        "around": 0.5883,
        "passage": 0.4003,
        "rank": 1.1767,
        "length": 0.1401,
    },
    "support": {
        "bias": -7.8305,
        "coverage": 1.0486,
        "around": 2.2983,
        "passage": 2.2782,
        "known": -0.2078,
        "margin": 1.2571,
    },
    "decision": {
        "threshold": 0.44,
    },
}
