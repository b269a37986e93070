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
                "bias": -7.4029,
                "spread": 0.4267,
                "words": 0.7218,
                "coverage": 0.2688,
                "match": 0.5577,
                "around": 0.4921,
                "passage": 0.4102,
                "rank": 1.1555,
                "length": 0.0809,
            },
            "support": {
                "bias": -7.0616,
                "dense": 1.1107,
                "coverage": 1.5777,
                "around": 3.7179,
                "passage": 2.2686,
                "known": -0.4068,
                "margin": 0.8638,
            },
            "decision": {
                "threshold": 0.47,
            },
        },
        "other": {
            "sentence": {
                "bias": -6.3247,
                "spread": 1.0257,
                "words": 0.706,
                "coverage": 0.0778,
                "match": 0.4966,
                "around": 0.151,
                "passage": 0.1536,
                "rank": 1.127,
                "length": -0.0667,
            },
            "support": {
                "bias": -2.3146,
                "dense": 1.592,
                "coverage": 1.3567,
                "around": 1.5809,
                "passage": 1.3109,
                "known": -0.4496,
                "margin": 0.435,
            },
            "decision": {
                "threshold": 0.65,
            },
        },
    },
}

OTHER: Calibration = {
    "same": {
        "sentence": {
            "bias": -7.3612,
            "spread": 0.6426,
            "coverage": 0.4158,
            "match": 0.8203,
            "around": 0.5801,
            "passage": 0.3921,
            "rank": 1.2404,
            "length": 0.1567,
        },
        "support": {
            "bias": -7.1253,
            "coverage": 1.1581,
            "around": 3.0602,
            "passage": 2.1046,
            "known": -0.3268,
            "margin": 1.1459,
        },
        "decision": {
            "threshold": 0.48,
        },
    },
    "other": {
        "sentence": {
            "bias": -7.3612,
            "spread": 0.6426,
            "coverage": 0.4158,
            "match": 0.8203,
            "around": 0.5801,
            "passage": 0.3921,
            "rank": 1.2404,
            "length": 0.1567,
        },
        "support": {
            "bias": -7.1253,
            "coverage": 1.1581,
            "around": 3.0602,
            "passage": 2.1046,
            "known": -0.3268,
            "margin": 1.1459,
        },
        "decision": {
            "threshold": 0.48,
        },
    },
}
