"""Coefficients of the extractive answers. Written by `python -m benchmarks.answers --fit`, never by hand.

Each calibration has the weights of two logistic models over the features of `generators/extractive.py`:
`sentence` (does this sentence answer?) and `support` (does the collection answer at all?), and the
`threshold` of `support` below which we abstain. `MODELS` has the embedders that were measured; for every
other one, whose cosines may mean anything, `OTHER` uses only features that do not depend on their scale.
"""

MODELS: dict[str, dict[str, dict[str, float]]] = {
    "hashed": {
        "sentence": {
            "bias": -7.0414,
            "dense": 0.1313,
            "spread": 0.9899,
            "coverage": 0.9523,
            "match": 0.8546,
            "around": 1.0719,
            "passage": 1.1353,
            "context": 0.3925,
            "rank": 1.3328,
            "length": 0.1038,
        },
        "support": {
            "bias": -6.4859,
            "dense": 0.4892,
            "spread": -0.9484,
            "coverage": 1.3377,
            "around": 1.2576,
            "passage": 1.3396,
            "known": 1.3024,
            "context": 0.4593,
            "margin": 1.5685,
        },
        "decision": {
            "threshold": 0.5,
        },
    },
}

OTHER: dict[str, dict[str, float]] = {
    "sentence": {
        "bias": -6.9495,
        "spread": 1.0081,
        "coverage": 0.9579,
        "match": 0.8632,
        "around": 1.0914,
        "passage": 1.1701,
        "rank": 1.3519,
        "length": 0.1051,
    },
    "support": {
        "bias": -6.4976,
        "spread": -0.8737,
        "coverage": 1.4045,
        "around": 1.2886,
        "passage": 1.4475,
        "known": 1.2692,
        "margin": 1.5813,
    },
    "decision": {
        "threshold": 0.5,
    },
}
