"""Measures the extractive answers on XQuAD, and fits their coefficients.

    python -m benchmarks.answers --data XQUAD                 measure; Markdown on stdout
    python -m benchmarks.answers --data XQUAD --fit           first write indexer/answers/calibration.py
    python -m benchmarks.answers --data XQUAD --follow-ups    measure the rule for follow-up questions

The 48 articles are cut in two folds of 24: coefficients are fitted on the first and everything is measured on
the second. In a fold the collection holds the first three paragraphs of each article. Answerable questions
are about those; unanswerable ones are about the two paragraphs that were left out ("near": the right article
without the answer) or about the other fold ("far"). "de > en" asks in German what only English text says.
`--model hashed` needs no weights: character n-grams, to try the script.
"""

import argparse
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.analysis import index_terms, query_terms
from indexer.answers import Passage, pipeline
from indexer.answers import calibration as calibration_module
from indexer.answers.evidence import content_words, text_terms
from indexer.answers.generators.extractive import (
    Features,
    distinct_quotes,
    rank_sentences,
    sentence_features,
    statements,
    support_features,
)
from indexer.chunking import sentences
from indexer.fusion import fuse
from indexer.types import Embedder, SearchHit, SearchOptions

ARTICLES, PARAGRAPHS, KEPT = 48, 5, 3
TOP_K = 8
SENTENCE = ["dense", "spread", "coverage", "match", "around", "passage", "context", "rank", "length"]
SUPPORT = ["dense", "spread", "coverage", "around", "passage", "known", "context", "margin"]
DEPENDS_ON_SCALE = {"dense", "context"}
RIDGE = 1e-3


# --- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    paragraph: int
    answers: tuple[str, ...]

    @property
    def fold(self) -> int:
        return self.paragraph // PARAGRAPHS * 2 // ARTICLES

    @property
    def kept(self) -> bool:
        return self.paragraph % PARAGRAPHS < KEPT


@dataclass(frozen=True)
class Dataset:
    paragraphs: list[str]
    questions: list[Question]

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()]
        place = {row["_id"]: i for i, row in enumerate(corpus)}
        (qrels,) = (folder / "qrels").glob("*.tsv")
        gold = {row.split("\t")[0]: row.split("\t")[1] for row in qrels.read_text("utf-8").splitlines()[1:]}
        rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
        questions = [
            Question(row["_id"], row["text"], place[gold[row["_id"]]], tuple(row["metadata"]["answers"]))
            for row in rows
        ]
        return cls([row["text"] for row in corpus], questions)

    def kept(self, fold: int) -> list[int]:
        half = ARTICLES * PARAGRAPHS // 2
        return [i for i in range(fold * half, (fold + 1) * half) if i % PARAGRAPHS < KEPT]


def spaced(items: Sequence[Question], count: int) -> list[Question]:
    """`count` of the items, evenly spaced: every article is asked about, and no random seed is needed."""
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]


# --- parts ---------------------------------------------------------------------------------------


class Hashed:
    """A stand-in embedder: hashed character 4-grams and terms. Knows words, no meaning, no translation."""

    model_id = fingerprint = "hashed"
    dim = 512

    def encode_document(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.zeros((len(inputs), self.dim), np.float32)
        for vector, text in zip(vectors, inputs, strict=True):
            for term in index_terms(text).words:
                for gram in {term, *(f"_{term}_"[i : i + 4] for i in range(len(term) - 1))}:
                    code = zlib.crc32(gram.encode())
                    vector[code % self.dim] += 1 if code >> 16 & 1 else -1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def encode_query(self, inputs: str) -> NDArray[np.float32]:
        return self.encode_document([inputs])[0]

    def encode_chunks(self, text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        return self.encode_document([text[start:end] for start, end in spans])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) // 4 + 1 for text in texts]


class Remembering:
    """An embedder that encodes each text once: the questions share their passages and sentences."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._documents: dict[str, NDArray[np.float32]] = {}
        self.encode_query = lru_cache(maxsize=None)(embedder.encode_query)
        self.model_id, self.fingerprint, self.dim = embedder.model_id, embedder.fingerprint, embedder.dim
        self.encode_chunks, self.count_tokens = embedder.encode_chunks, embedder.count_tokens

    def encode_document(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(inputs) if text not in self._documents]
        self._documents.update(zip(new, self._embedder.encode_document(new), strict=True))
        return np.array([self._documents[text] for text in inputs], np.float32).reshape(-1, self.dim)


class BM25:
    """BM25 (k1 = 1.2, b = 0.75) over the terms of a few hundred texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [[*words, *variants] for words, variants in map(index_terms, texts)]
        lengths = np.array([len(text) for text in self._texts], float)
        self._norm = 1.2 * (0.25 + 0.75 * lengths / max(1.0, lengths.mean()))
        self._postings: dict[str, list[int]] = {}
        for i, text in enumerate(self._texts):
            for term in text:
                self._postings.setdefault(term, []).append(i)

    def scores(self, query: Iterable[str]) -> NDArray[np.float64]:
        scores = np.zeros(len(self._texts))
        for term in dict.fromkeys(query):
            places, counts = np.unique(self._postings.get(term, []), return_counts=True)
            places = places.astype(int)
            idf = np.log(1 + (len(self._texts) - len(places) + 0.5) / (len(places) + 0.5))
            scores[places] += idf * counts * 2.2 / (counts + self._norm[places])
        return scores


class Paragraphs:
    """A collection in memory with the product's default search, dense and BM25 fused."""

    def __init__(self, texts: Sequence[str], numbers: Sequence[int], embedder: Embedder) -> None:
        self.texts, self.numbers, self.embedder = list(texts), list(numbers), embedder
        self._vectors = embedder.encode_document(self.texts)
        self._bm25 = BM25(self.texts)

    @cached_property
    def sentences(self) -> list[str]:
        return [text[start:end] for text in self.texts for start, end in sentences(text)]

    @cached_property
    def sentence_bm25(self) -> BM25:
        return BM25(self.sentences)

    def search(self, query: str, options: SearchOptions | None = None) -> list[SearchHit]:
        terms = query_terms(query)
        dense, lexical = self._vectors @ self.embedder.encode_query(query), self._bm25.scores(terms)
        found = fuse(_ranking(dense, float("-inf")), _ranking(lexical, 0.0), len(terms))
        return [self._hit(i, score) for i, score in found[: options.top_k if options else TOP_K]]

    def _hit(self, i: int, score: float) -> SearchHit:
        text, n = self.texts[i], self.numbers[i]
        return SearchHit(score, f"p{n:03}", n, None, None, None, text, 0, len(text), {})

    def passages(self, query: str) -> list[Passage]:
        return pipeline.pack(self.search(query, SearchOptions(top_k=TOP_K)), self.embedder, 10**6)


def _ranking(scores: NDArray[np.floating], above: float) -> list[tuple[int, float]]:
    """(position, score) of the scores above a bound, best first."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [(i, float(scores[i])) for i in order if scores[i] > above]


def contains(text: str, answers: Iterable[str]) -> bool:
    bare = " ".join(text.casefold().split())
    return any(" ".join(answer.casefold().split()) in bare for answer in answers)


@dataclass(frozen=True)
class Task:
    """Questions in one language against paragraphs in the same or another one."""

    name: str
    asked: Dataset
    read: Dataset

    def collection(self, fold: int, embedder: Embedder) -> Paragraphs:
        kept = self.read.kept(fold)
        return Paragraphs([self.read.paragraphs[i] for i in kept], kept, embedder)

    def questions(self, fold: int, count: int) -> tuple[list[Question], list[Question]]:
        """`count` answerable and as many unanswerable ones, half of them near and half far."""
        gold = {question.id: question.answers for question in self.read.questions}
        asked = [Question(q.id, q.text, q.paragraph, gold[q.id]) for q in self.asked.questions]
        near = [q for q in asked if q.fold == fold and not q.kept]
        far = [q for q in asked if q.fold != fold]
        return (
            spaced([q for q in asked if q.fold == fold and q.kept], count),
            spaced(near, count // 2) + spaced(far, count - count // 2),
        )


# --- fitting -------------------------------------------------------------------------------------


def fit(tasks: Sequence[Task], embedder: Embedder, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Two calibrations, {"model": ..., "other": ...}, fitted on fold 0 of all tasks.

    "other" sees questions in the language of the text only: an unknown embedder may not cross languages.
    """
    examples, one_language = [], []
    for task in tasks:
        found = list(_examples(task, embedder, count))
        examples += found
        one_language += found if task.asked is task.read else []
    without = [name for name in SENTENCE if name not in DEPENDS_ON_SCALE]
    support_without = [name for name in SUPPORT if name not in DEPENDS_ON_SCALE]
    return {"model": _fit(examples, SENTENCE, SUPPORT), "other": _fit(one_language, without, support_without)}


Example = tuple[Features, NDArray[np.bool_], bool]


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
        yield features, np.array(labels), question in answerable


def _fit(examples: Sequence[Example], sentence: list[str], support: list[str]) -> dict[str, dict[str, float]]:
    rows = np.concatenate([np.stack([f[name] for name in sentence], 1) for f, _, _ in examples])
    weights = _logistic(sentence, rows, np.concatenate([labels for _, labels, _ in examples]))

    def logits(features: Features) -> NDArray[np.float64]:
        return weights["bias"] + sum(weights[name] * features[name] for name in sentence)

    best = [support_features(features, logits(features), weights["bias"]) for features, _, _ in examples]
    rows = np.array([[features[name][0] for name in support] for features in best])
    answerable = np.array([answerable for _, _, answerable in examples])
    supported = _logistic(support, rows, answerable)
    scores = 1 / (1 + np.exp(-(supported["bias"] + rows @ [supported[name] for name in support])))
    thresholds = np.arange(0.2, 0.81, 0.01)
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


def write_calibration(embedder: Embedder, fitted: dict[str, dict[str, dict[str, float]]]) -> Path:
    """Replace the numbers in `indexer/answers/calibration.py`; other embedders' entries are kept."""
    path = Path(calibration_module.__file__)
    head = path.read_text("utf-8").split("\nMODELS", 1)[0]
    models = {**calibration_module.MODELS, embedder.model_id: fitted["model"]}
    models.pop("hashed", None) if embedder.model_id != "hashed" else None
    text = f"{head}\nMODELS: dict[str, dict[str, dict[str, float]]] = {_literal(models)}\n\n"
    text += f"OTHER: dict[str, dict[str, float]] = {_literal(fitted['other'])}\n"
    path.write_text(text, "utf-8")
    calibration_module.MODELS.clear()
    calibration_module.MODELS.update(models)
    calibration_module.OTHER.clear()
    calibration_module.OTHER.update(fitted["other"])
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


# --- measuring -----------------------------------------------------------------------------------


def measure(task: Task, embedder: Embedder, count: int) -> dict[str, float]:
    """Fold 1: answer found in the best one and three sentences, ours and BM25's, and abstention."""
    collection = task.collection(1, embedder)
    answerable, unanswerable = task.questions(1, count)
    found = np.zeros(4)
    for question in answerable:
        ranking = rank_sentences(question.text, collection.passages(question.text), embedder)
        texts = [quote.text for quote in distinct_quotes(ranking.quotes, 3)]
        order = np.argsort(-collection.sentence_bm25.scores(query_terms(question.text)), kind="stable")[:3]
        lexical = [collection.sentences[i] for i in order]
        hits = [
            any(contains(text, question.answers) for text in some)
            for some in (texts[:1], texts, lexical[:1], lexical)
        ]
        found += hits
    abstained = [
        [_abstains(question, collection, embedder) for question in group]
        for group in (answerable, unanswerable)
    ]
    near = len(unanswerable) // 2
    wrongly, rightly = sum(abstained[0]), sum(abstained[1])
    top1, top3, bm25_1, bm25_3 = found / len(answerable)
    return {
        "top 1": top1,
        "top 3": top3,
        "BM25 top 1": bm25_1,
        "BM25 top 3": bm25_3,
        "abstention precision": rightly / max(1, wrongly + rightly),
        "recall": rightly / len(unanswerable),
        "recall near": sum(abstained[1][:near]) / max(1, near),
        "recall far": sum(abstained[1][near:]) / max(1, len(unanswerable) - near),
        "answered": 1 - wrongly / len(answerable),
    }


def _abstains(question: Question, collection: Paragraphs, embedder: Embedder) -> bool:
    ranking = rank_sentences(question.text, collection.passages(question.text), embedder)
    return ranking.support < ranking.threshold


def measure_follow_ups(dataset: Dataset, embedder: Embedder, count: int) -> dict[str, tuple[float, float]]:
    """MRR of the gold paragraph for each rule, on follow-ups and on changes of topic.

    A follow-up is the second question of a paragraph without the words it shares with the first one, as a
    speaker would leave them out. A change of topic is a whole question after one about another article.
    """
    collection = Paragraphs(dataset.paragraphs, range(len(dataset.paragraphs)), embedder)
    by_paragraph: dict[int, list[Question]] = {}
    for question in dataset.questions:
        by_paragraph.setdefault(question.paragraph, []).append(question)
    pairs = [(group[0], group[1]) for group in by_paragraph.values() if len(group) > 1]
    pairs = pairs[:: max(1, len(pairs) // count)]

    def mrr(query: str, paragraph: int) -> float:
        ids = [hit.chunk_id for hit in collection.search(query, SearchOptions(top_k=10))]
        return 1 / (1 + ids.index(paragraph)) if paragraph in ids else 0.0

    def combined(limit: int, before: str, question: str) -> str:
        return f"{before}\n{question}" if content_words(question) <= limit else question

    rules = {"never": -1, **{f"<= {n} content words": n for n in (1, 2, 3, 4, 5, 6, 8)}, "always": 10**6}
    report = {}
    for name, limit in rules.items():
        follow = [mrr(combined(limit, a.text, shortened(a.text, b.text)), b.paragraph) for a, b in pairs]
        others = pairs[len(pairs) // 2 :] + pairs[: len(pairs) // 2]
        switch = [
            mrr(combined(limit, a.text, b.text), b.paragraph)
            for (a, _), (_, b) in zip(others, pairs, strict=True)
        ]
        report[name] = (float(np.mean(follow)), float(np.mean(switch)))
    return report


def shortened(before: str, question: str) -> str:
    """`question` without the words whose terms `before` has; with spaces between words only."""
    known = text_terms(before)
    return " ".join(word for word in question.split() if not text_terms(word) & known) or question


# --- command -------------------------------------------------------------------------------------


def load_tasks(data: Path, languages: Sequence[str]) -> list[Task]:
    sets = {language: Dataset.load(data / language) for language in languages}
    tasks = [Task(language, dataset, dataset) for language, dataset in sets.items()]
    if "en" in sets:
        tasks += [Task(f"{name} > en", dataset, sets["en"]) for name, dataset in sets.items() if name != "en"]
    return tasks


def table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |" for name, row in rows.items()
    ]
    mean = {c: float(np.mean([row[c] for row in rows.values()])) for c in columns}
    return "\n".join([*lines, "| mean | " + " | ".join(f"{mean[c]:.3f}" for c in columns) + " |"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with one BEIR folder per language")
    parser.add_argument(
        "--model", default=None, help="as for Embedder; 'hashed' for the stand-in; default: bundled"
    )
    parser.add_argument("--languages", default="ar,de,en,es,hi,ru,vi,zh")
    parser.add_argument("--questions", type=int, default=40, help="per language and kind")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--follow-ups", action="store_true")
    options = parser.parse_args()
    embedder: Embedder
    if options.model == "hashed":
        embedder = Remembering(Hashed())
    else:
        from rwkv_embed import Embedder as RWKVEmbedder

        embedder = Remembering(RWKVEmbedder(options.model))
    start = time.perf_counter()
    tasks = load_tasks(options.data, options.languages.split(","))
    if options.follow_ups:
        for task in tasks:
            if task.asked is task.read and task.name not in ("zh", "ja", "th"):
                for rule, (follow, switch) in measure_follow_ups(
                    task.read, embedder, options.questions
                ).items():
                    print(f"{task.name} {rule:20} follow-ups {follow:.3f}  changes of topic {switch:.3f}")
        return
    if options.fit:
        print(f"wrote {write_calibration(embedder, fit(tasks, embedder, options.questions))}\n")
    print(table({task.name: measure(task, embedder, options.questions) for task in tasks}))
    print(
        f"\n{embedder.model_id}, {options.questions} questions per row and kind, "
        f"{time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
