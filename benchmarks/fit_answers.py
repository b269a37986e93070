"""Fits the coefficients of the extractive answers; `python -m benchmarks.answers --fit` runs this."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.xquad import Task, contains
from indexer.answers import calibration as calibration_module
from indexer.answers.calibration import Calibration, Weights
from indexer.answers.features import Features, sentence_features, support_features
from indexer.answers.generators.extractive import linear, statements
from indexer.types import Embedder

SENTENCE = ["spread", "words", "coverage", "match", "around", "passage", "rank", "length"]
SUPPORT = ["dense", "coverage", "around", "passage", "known", "margin"]
SCALED = {"dense", "words"}  # not for an embedder whose scale, and grasp of single words, may be anything
RIDGE = 1e-3


class Example(NamedTuple):
    """A question's candidates: their features, which of them answer, and whether any text does."""

    features: Features
    labels: NDArray[np.bool_]
    answerable: bool


def fit(tasks: Sequence[Task], embedder: Embedder, count: int) -> tuple[Calibration, Weights]:
    """The calibration of this embedder and the weights of any other one, fitted on fold 0 of all tasks.

    One of its own has different weights for text in the question's language and in another. That of any other
    embedder is fitted within languages and used for both: nobody knows whether it crosses languages.
    """
    within = [example for task in tasks if task.within for example in _examples(task, embedder, count)]
    across = [example for task in tasks if not task.within for example in _examples(task, embedder, count)]
    own = {"same": _fit(within, SENTENCE, SUPPORT), "other": _fit(across or within, SENTENCE, SUPPORT)}
    known = [[name for name in names if name not in SCALED] for names in (SENTENCE, SUPPORT)]
    return own, _fit(within, *known)


def _examples(task: Task, embedder: Embedder, count: int) -> Iterator[Example]:
    collection = task.collection(0, embedder)
    answerable, unanswerable = task.questions(0, count)
    for question in answerable + unanswerable:
        passages = collection.passages(question.text)
        candidates = statements(passages)
        labels = [
            p.hit.chunk_id == question.paragraph and contains(p.text[start:end], question.answers)
            for p, start, end in candidates
        ]
        features = sentence_features(question.text, passages, candidates, embedder)
        yield Example(features, np.array(labels), question in answerable)


def _fit(examples: Sequence[Example], sentence: list[str], support: list[str]) -> Weights:
    rows = np.concatenate([np.stack([e.features[name] for name in sentence], 1) for e in examples])
    weights = _logistic(sentence, rows, np.concatenate([e.labels for e in examples]))
    evidence = []
    for example in examples:
        logits = linear(weights, example.features)
        best = int(np.argmax(logits))
        evidence.append(support_features(example.features, logits, weights["bias"], best))
    rows = np.array([[found[name] for name in support] for found in evidence])
    answerable = np.array([example.answerable for example in examples])
    supported = _logistic(support, rows, answerable)
    scores = 1 / (1 + np.exp(-np.array([linear(supported, found) for found in evidence])))
    thresholds = np.arange(0.1, 0.91, 0.01)
    balanced = [(scores[answerable] >= t).mean() + (scores[~answerable] < t).mean() for t in thresholds]
    return {
        "sentence": weights,
        "support": supported,
        "decision": {"threshold": round(float(thresholds[int(np.argmax(balanced))]), 2)},
    }


def _logistic(names: list[str], rows: NDArray[np.float64], labels: NDArray[np.bool_]) -> dict[str, float]:
    """Ridge logistic regression by Newton's method. Returns {"bias": ..., name: weight}."""
    x = np.concatenate([np.ones((len(rows), 1)), rows], 1)
    w = np.zeros(x.shape[1])
    penalty = RIDGE * len(rows) * np.eye(len(w)) * (np.arange(len(w)) > 0)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - labels) + penalty @ w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    return dict(zip(["bias", *names], (round(float(v), 4) for v in w), strict=True))


def write_calibration(embedder: Embedder, own: Calibration, unknown: Weights) -> Path:
    """Replace the numbers in `indexer/answers/calibration.py`; other embedders' entries are kept."""
    path = Path(calibration_module.__file__)
    head = path.read_text("utf-8").split("\nMODELS", 1)[0]
    models = {**calibration_module.MODELS, embedder.model_id: own}
    text = f"{head}\nMODELS: dict[str, Calibration] = {_literal(models)}\n\n"
    text += f"UNKNOWN_MODEL: Weights = {_literal(unknown)}\n"
    path.write_text(text, "utf-8")
    for known, new in ((calibration_module.MODELS, models), (calibration_module.UNKNOWN_MODEL, unknown)):
        known.clear()
        known.update(new)  # type: ignore[arg-type]
    return path


def _literal(value: object, indent: str = "") -> str:
    """A dictionary as Python source, one entry a line, as the formatter likes it."""
    if not isinstance(value, dict):
        return repr(value)
    if not value:
        return "{}"
    inner = indent + "    "
    lines = [f'{inner}"{key}": {_literal(item, inner)},' for key, item in value.items()]
    return "\n".join(["{", *lines, indent + "}"])
