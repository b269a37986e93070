"""Coefficients of the extractive answers. Written by `python -m benchmarks.answers --fit`, never by hand.

Each calibration has the weights of two logistic models over the features of `generators/extractive.py`:
`sentence` (does this sentence answer?) and `support` (does the collection answer at all?), and the
`threshold` of `support` below which we abstain. `MODELS` has the embedders that were measured; for every
other one, whose cosines may mean anything, `OTHER` uses only features that do not depend on their scale.
"""

MODELS: dict[str, dict[str, dict[str, float]]] = {
    "rwkv-embed-small": {
        "sentence": {
            "bias": -6.705,
            "dense": -0.013,
            "spread": 1.1095,
            "coverage": 0.2495,
            "match": 0.4751,
            "around": 0.2932,
            "passage": 0.0427,
            "context": 0.0372,
            "rank": 1.4251,
            "length": 0.1021,
        },
        "support": {
            "bias": -3.1349,
            "dense": 0.3272,
            "spread": -0.2202,
            "coverage": 1.2639,
            "around": 2.3054,
            "passage": 1.8577,
            "known": -3.8335,
            "context": 0.3352,
            "margin": 0.8828,
        },
        "decision": {
            "threshold": 0.52,
        },
    },
}

OTHER: dict[str, dict[str, float]] = {
    "sentence": {
        "bias": -7.3886,
        "spread": 0.661,
        "coverage": 0.4133,
        "match": 0.8358,
        "around": 0.5616,
        "passage": 0.3572,
        "rank": 1.2518,
        "length": 0.1464,
    },
    "support": {
        "bias": -7.0247,
        "spread": 0.1884,
        "coverage": 1.2479,
        "around": 3.0763,
        "passage": 2.2735,
        "known": -0.4287,
        "margin": 1.0245,
    },
    "decision": {
        "threshold": 0.47,
    },
}
