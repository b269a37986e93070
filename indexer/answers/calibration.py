"""Coefficients of the extractive answers. Written by `python -m benchmarks.answers --fit`, never by hand.

A calibration has two parts: for passages in the language of the question (`same`) and in another (`other`).
Each has the weights of two logistic models over the features of `features.py`, `sentence` (does this sentence
answer?) and `support` (does the collection answer at all?), and the `threshold` of `support` below which we
abstain. `MODELS` has the embedders that were measured; for every other one, whose cosines may mean anything,
`OTHER` uses only features that do not depend on their scale.
"""

# same/other -> sentence/support/decision -> name -> number
Calibration = dict[str, dict[str, dict[str, float]]]

MODELS: dict[str, Calibration] = {
    "rwkv-embed-small": {
        "same": {
            "sentence": {
                "bias": -7.5143,
                "spread": 0.4247,
                "words": 0.7249,
                "coverage": 0.2966,
                "match": 0.6122,
                "around": 0.5101,
                "passage": 0.4286,
                "rank": 1.1565,
                "length": 0.0711,
            },
            "support": {
                "bias": -7.0966,
                "dense": 1.2558,
                "coverage": 1.5104,
                "around": 3.4536,
                "passage": 2.3323,
                "known": -0.3988,
                "margin": 0.8766,
            },
            "decision": {
                "threshold": 0.46,
            },
        },
        "other": {
            "sentence": {
                "bias": -6.3331,
                "spread": 1.0311,
                "words": 0.7089,
                "coverage": 0.0894,
                "match": 0.5428,
                "around": 0.1637,
                "passage": 0.1668,
                "rank": 1.1332,
                "length": -0.0669,
            },
            "support": {
                "bias": -2.3346,
                "dense": 1.5476,
                "coverage": 1.3041,
                "around": 1.5285,
                "passage": 1.261,
                "known": -0.3387,
                "margin": 0.442,
            },
            "decision": {
                "threshold": 0.64,
            },
        },
    },
}

OTHER: Calibration = {
    "same": {
        "sentence": {
            "bias": -7.5279,
            "spread": 0.6459,
            "coverage": 0.4681,
            "match": 0.8938,
            "around": 0.6154,
            "passage": 0.4272,
            "rank": 1.2473,
            "length": 0.1431,
        },
        "support": {
            "bias": -7.2934,
            "coverage": 0.9255,
            "around": 2.5011,
            "passage": 2.2163,
            "known": -0.1197,
            "margin": 1.2036,
        },
        "decision": {
            "threshold": 0.51,
        },
    },
    "other": {
        "sentence": {
            "bias": -7.5279,
            "spread": 0.6459,
            "coverage": 0.4681,
            "match": 0.8938,
            "around": 0.6154,
            "passage": 0.4272,
            "rank": 1.2473,
            "length": 0.1431,
        },
        "support": {
            "bias": -7.2934,
            "coverage": 0.9255,
            "around": 2.5011,
            "passage": 2.2163,
            "known": -0.1197,
            "margin": 1.2036,
        },
        "decision": {
            "threshold": 0.51,
        },
    },
}
