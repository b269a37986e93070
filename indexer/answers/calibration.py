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
                "bias": -7.7916,
                "spread": 0.5271,
                "words": 0.8976,
                "coverage": 0.218,
                "match": 0.4475,
                "around": 0.4675,
                "passage": 0.4144,
                "rank": 1.0715,
                "length": 0.0475,
            },
            "support": {
                "bias": -8.4573,
                "dense": 4.0494,
                "coverage": 0.9285,
                "around": 2.4582,
                "passage": 2.0298,
                "known": -0.2403,
                "margin": 0.9711,
            },
            "decision": {
                "threshold": 0.32,
            },
        },
        "other": {
            "sentence": {
                "bias": -7.0812,
                "spread": 0.9576,
                "words": 0.9814,
                "coverage": 0.049,
                "match": 0.3281,
                "around": 0.0989,
                "passage": 0.1005,
                "rank": 1.0479,
                "length": -0.0589,
            },
            "support": {
                "bias": -5.9476,
                "dense": 4.3415,
                "coverage": 1.0973,
                "around": 1.2912,
                "passage": 1.4369,
                "known": -0.4886,
                "margin": 0.855,
            },
            "decision": {
                "threshold": 0.57,
            },
        },
    },
}

UNKNOWN_MODEL: Weights = {
    "sentence": {
        "bias": -7.6578,
        "spread": 0.8482,
        "coverage": 0.4079,
        "match": 0.7614,
        "around": 0.5815,
        "passage": 0.3847,
        "rank": 1.1811,
        "length": 0.1389,
    },
    "support": {
        "bias": -8.3222,
        "coverage": 1.165,
        "around": 2.0584,
        "passage": 1.9519,
        "known": -0.2542,
        "margin": 1.3952,
    },
    "decision": {
        "threshold": 0.4,
    },
}
