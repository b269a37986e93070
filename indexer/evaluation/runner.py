"""Evaluate an embedder, and the whole search around it, on labelled data sets."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from indexer.evaluation.datasets import BitextDataset, Dataset, RetrievalDataset, SimilarityDataset
from indexer.evaluation.metrics import mrr_at_k, ndcg_at_k, recall_at_k, spearman
from indexer.types import Document, Embedder, Reranker, SearchMode, SearchOptions

Scores = dict[str, float]  # metric -> value
Progress = Callable[[str, int, int], None]  # (set, done, of)

ALL_MODES: tuple[SearchMode, ...] = ("dense", "lexical", "hybrid")
RETRIEVED = 100
_BITEXT_BLOCK = 1_024


@dataclass(slots=True)
class Report:
    """Scores of one model: data set -> mode -> metric -> value between 0 and 1 (Spearman: -1 and 1)."""

    model: str
    sets: dict[str, dict[str, Scores]] = field(default_factory=dict)

    def means(self) -> dict[str, Scores]:
        """mode -> metric -> mean over the sets that have it."""
        collected: dict[str, dict[str, list[float]]] = {}
        for modes in self.sets.values():
            for mode, scores in modes.items():
                for metric, value in scores.items():
                    collected.setdefault(mode, {}).setdefault(metric, []).append(value)
        return {
            mode: {metric: fmean(values) for metric, values in metrics.items()}
            for mode, metrics in collected.items()
        }

    def to_json(self) -> dict[str, Any]:
        """{"model", "dense": {"ndcg@10", …}, …, "sets": {"de": {"dense": {…}}}}; the modes hold the means."""
        return {"model": self.model, **self.means(), "sets": self.sets}

    def to_markdown(self, other: "Report | None" = None) -> str:
        """A table of every set and mode; with `other`, its values and the differences beside ours."""
        metrics = list(dict.fromkeys(m for modes in self.sets.values() for s in modes.values() for m in s))
        head = ["set", "mode", *metrics]
        lines = [f"Model: {self.model}" + (f", compared with {other.model}" if other else ""), ""]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        sets = {**self.sets, "mean": self.means()} if len(self.sets) > 1 else self.sets
        theirs: Mapping[str, Mapping[str, Scores]] = {**other.sets, "mean": other.means()} if other else {}
        for name, modes in sets.items():
            for mode, scores in modes.items():
                compared = theirs.get(name, {}).get(mode, {})
                cells = [_cell(scores.get(metric), compared.get(metric)) for metric in metrics]
                lines.append("| " + " | ".join([name, mode, *cells]) + " |")
        return "\n".join(lines) + "\n"


def evaluate(
    datasets: Iterable[Dataset],
    embedder: Embedder,
    modes: Sequence[SearchMode] = ALL_MODES,
    *,
    reranker: Reranker | None = None,
    progress: Progress | None = None,
) -> Report:
    """Scores on every set. Retrieval sets are indexed into a temporary store and searched as users search,
    with `reranker` once more in each mode.

    Bitext and similarity sets measure the embedder alone and are reported as mode "dense".
    """
    report = Report(embedder.model_id)
    for dataset in datasets:
        if isinstance(dataset, RetrievalDataset):
            report.sets[dataset.name] = _retrieval(dataset, embedder, modes, reranker, progress)
        elif isinstance(dataset, BitextDataset):
            report.sets[dataset.name] = {"dense": _bitext(dataset, embedder)}
        else:
            report.sets[dataset.name] = {"dense": _similarity(dataset, embedder)}
    return report


def score_rankings(rankings: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, float]]) -> Scores:
    """Mean metrics of rankings by query id, over the queries that have a relevant document."""
    judged = [query for query, grades in qrels.items() if query in rankings and max(grades.values()) > 0]
    if not judged:
        return {}
    metrics = {
        "ndcg@10": lambda ranking, grades: ndcg_at_k(ranking, grades, 10),
        "mrr@10": lambda ranking, grades: mrr_at_k(ranking, grades, 10),
        "recall@10": lambda ranking, grades: recall_at_k(ranking, grades, 10),
        "recall@100": lambda ranking, grades: recall_at_k(ranking, grades, RETRIEVED),
    }
    return {
        name: fmean(metric(rankings[query], qrels[query]) for query in judged)
        for name, metric in metrics.items()
    }


def _retrieval(
    dataset: RetrievalDataset,
    embedder: Embedder,
    modes: Sequence[SearchMode],
    reranker: Reranker | None,
    progress: Progress | None,
) -> dict[str, Scores]:
    from indexer.store import open_store

    results: dict[str, Scores] = {}
    with (
        tempfile.TemporaryDirectory(prefix="rwkv-embed-eval-") as folder,
        open_store(folder, embedder_factory=lambda _: embedder) as store,
    ):
        collection = store.create_collection("eval")
        collection.upsert(Document(id=id, text=text) for id, text in dataset.corpus.items())
        if reranker is not None:
            collection.reranker = reranker
        variants = [(mode, False) for mode in modes] + [(mode, True) for mode in modes if reranker]
        for mode, reranked in variants:
            options = SearchOptions(top_k=RETRIEVED, mode=mode, group_by="document", rerank=reranked)
            rankings = {}
            for number, (query_id, query) in enumerate(dataset.queries.items(), start=1):
                rankings[query_id] = [hit.document_id for hit in collection.search(query, options)]
                if progress:
                    progress(f"{dataset.name} {mode}", number, len(dataset.queries))
            results[f"{mode}+rerank" if reranked else mode] = score_rankings(rankings, dataset.qrels)
    return results


def _bitext(dataset: BitextDataset, embedder: Embedder) -> Scores:
    """How often the nearest sentence of the other language is the translation; mean of both directions."""
    first = embedder.encode_document(dataset.first)
    second = embedder.encode_document(dataset.second)
    return {"accuracy": (_nearest_is_same(first, second) + _nearest_is_same(second, first)) / 2}


def _nearest_is_same(queries: np.ndarray, targets: np.ndarray) -> float:
    right = 0
    for start in range(0, len(queries), _BITEXT_BLOCK):
        block = queries[start : start + _BITEXT_BLOCK]
        nearest = np.argmax(block @ targets.T, axis=1)
        right += int(np.count_nonzero(nearest == np.arange(start, start + len(block))))
    return right / len(queries) if len(queries) else 0.0


def _similarity(dataset: SimilarityDataset, embedder: Embedder) -> Scores:
    cosines = np.sum(
        embedder.encode_document(dataset.first) * embedder.encode_document(dataset.second), axis=1
    )
    return {"spearman": spearman(cosines, dataset.scores)}


def _cell(ours: float | None, theirs: float | None) -> str:
    if ours is None:
        return ""
    return f"{ours:.4f}" if theirs is None else f"{ours:.4f} ({theirs:.4f}, {ours - theirs:+.4f})"
