"""Measures the two arms of the search and their fusion on XQuAD, and finds the fusion's constants.

    python -m benchmarks.tune_fusion --data XQUAD [--model NAME] [--questions 200] [--cache FOLDER]

`--data` has one BEIR folder per language; ids are the same in all. Every language is indexed into a
collection of its own with the product's defaults. Each is asked in its own language, and English is asked in
all others ("de>en"). The rankings of both arms are made once by the real search; every fusion is then
computed from them. Constants are chosen on the even questions and everything is reported on the odd ones
(MRR@10 of the right paragraph); the column "search" is the product as shipped, asked for ten documents. With
`--cache`, collections and rankings are kept for the next run with the same model. Markdown on stdout.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sqlalchemy import select

from indexer import fusion, open_store
from indexer.db.tables import ChunkRow, DocumentRow
from indexer.evaluation.datasets import RetrievalDataset, load_datasets, with_queries_of
from indexer.evaluation.metrics import mrr_at_k
from indexer.fulltext import parse_query
from indexer.search import MIN_DEPTH, arm_rankings
from indexer.types import Document, SearchOptions

if TYPE_CHECKING:
    from indexer.collection import Collection

Pairs = list[tuple[int, float]]  # (chunk id, score), best first

LEXICAL_WEIGHTS = (0.5, 0.7, 0.85, 1.0, 1.5, 2.0)
SHARPNESSES = (3, 4, 5)  # below 3 they bury other languages, see `indexer.fusion`
RRF_KS = (10, 60)
RRF_WEIGHTS = (1.0, 3.0, 10.0)  # of the lexical arm; the dense arm has 1


class Asked(NamedTuple):
    """A question, what each arm ranked for it, and what the finished search found."""

    dense: Pairs
    lexical: Pairs
    terms: int
    found: list[str]  # document ids
    relevance: Mapping[str, float]


class Task(NamedTuple):
    """Questions to one collection; `documents` maps its chunks to their documents."""

    name: str
    documents: Mapping[int, str]
    questions: list[Asked]

    def mrr(self, rank: "Rank", half: int) -> float:
        """MRR@10 over the even (0) or odd (1) questions; a document ranks where its best chunk does."""
        scores = []
        for asked in self.questions[half::2]:
            ranking = dict.fromkeys(self.documents[chunk] for chunk, _ in rank(asked))
            scores.append(mrr_at_k(list(ranking), asked.relevance, 10))
        return float(np.mean(scores))


Rank = Callable[[Asked], Pairs]


def dense(asked: Asked) -> Pairs:
    return asked.dense


def lexical(asked: Asked) -> Pairs:
    return asked.lexical


def scores(weight: float, sharpness: float) -> Rank:
    """The product's fusion with other constants."""
    return lambda asked: fusion.fuse(asked.dense, asked.lexical, asked.terms, weight, sharpness)


def ranks(k: int, weight: float) -> Rank:
    """Reciprocal rank fusion (Cormack, Clarke, Büttcher 2009), the usual alternative."""

    def fused(asked: Asked) -> Pairs:
        total: dict[int, float] = {}
        for ranking, share in ((asked.dense, 1.0), (asked.lexical, weight)):
            for rank, (chunk, _) in enumerate(ranking, start=1):
                total[chunk] = total.get(chunk, 0.0) + share / (k + rank)
        return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))

    return fused


# --- rankings --------------------------------------------------------------------------------------


def read_tasks(data: Path, model: str | None, count: int, cache: Path) -> list[Task]:
    """All tasks, from the cache or from collections made now."""
    from rwkv_embed import Embedder

    embedder = Embedder(model)
    folder = cache / embedder.fingerprint[:16]
    folder.mkdir(parents=True, exist_ok=True)
    sets = {dataset.name: dataset for dataset in load_datasets(data) if isinstance(dataset, RetrievalDataset)}
    tasks = list(sets.items())
    if "en" in sets:
        tasks += [("en", with_queries_of(sets["en"], other)) for name, other in sets.items() if name != "en"]
    with open_store(folder / "store", embedder_factory=lambda name: embedder) as store:
        return [
            _task(store.collection_or_create(name), sets[name], dataset, count, folder)
            for name, dataset in tasks
        ]


def _task(
    collection: "Collection", corpus: RetrievalDataset, asked: RetrievalDataset, count: int, folder: Path
) -> Task:
    start = time.perf_counter()
    if collection.count() < len(corpus.corpus):
        collection.upsert(Document(id, text) for id, text in corpus.corpus.items())
    with collection.session() as session:
        statement = (
            select(ChunkRow.id, DocumentRow.external_id)
            .join(DocumentRow, DocumentRow.id == ChunkRow.document_id)
            .where(ChunkRow.collection_id == collection.id)
        )
        documents = {row.id: row.external_id for row in session.execute(statement)}
    shipped = f"{fusion.LEXICAL_WEIGHT}-{fusion.SHARPNESS}"  # what was searched with
    saved = folder / f"{asked.name.replace('>', '-')}-{count}-{shipped}.json"
    if not saved.is_file():
        every = max(1, len(asked.queries) // count)
        rows = [_ask(collection, asked.queries[id]) for id in list(asked.queries)[::every]]
        saved.write_text(json.dumps(rows))
    ids = list(asked.queries)[:: max(1, len(asked.queries) // count)]
    questions = [
        Asked(dense, lexical, terms, found, asked.qrels[id])
        for id, (dense, lexical, terms, found) in zip(ids, json.loads(saved.read_text()), strict=True)
    ]
    print(f"{asked.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return Task(asked.name, documents, questions)


def _ask(collection: "Collection", query: str) -> tuple[Pairs, Pairs, int, list[str]]:
    arms = arm_rankings(collection, query, MIN_DEPTH)
    hits = collection.search(query, SearchOptions(top_k=10, group_by="document"))
    return arms["dense"], arms["lexical"], parse_query(query).size, [hit.document_id for hit in hits]


# --- choosing and reporting ------------------------------------------------------------------------


def mean_gain(tasks: Iterable[Task], rank: Rank, half: int) -> float:
    """How far a fusion is above the better arm of each task, on average."""
    return float(np.mean([t.mrr(rank, half) - max(t.mrr(dense, half), t.mrr(lexical, half)) for t in tasks]))


def best(tasks: list[Task], candidates: Mapping[str, Rank]) -> tuple[str, Rank]:
    """The candidate with the highest mean gain on the even questions; all of them go to stderr."""
    gains = {name: mean_gain(tasks, rank, half=0) for name, rank in candidates.items()}
    for name, gain in gains.items():
        print(f"{gain:+.4f}  {name}", file=sys.stderr)
    name = max(gains, key=gains.__getitem__)
    return name, candidates[name]


def report(tasks: list[Task]) -> str:
    """A Markdown table over the odd questions, and the constants that were best on the even ones."""
    rrf_name, rrf = best(
        tasks, {f"RRF k={k}, weight {w:g}": ranks(k, w) for k in RRF_KS for w in RRF_WEIGHTS}
    )
    sum_name, summed = best(
        tasks,
        {
            f"LEXICAL_WEIGHT = {w}, SHARPNESS = {sharpness}": scores(w, sharpness)
            for sharpness in SHARPNESSES
            for w in LEXICAL_WEIGHTS
        },
    )
    columns = {
        "dense": dense,
        "lexical": lexical,
        "RRF k=60": ranks(60, 1.0),
        "RRF best": rrf,
        "best": summed,
    }
    lines = [f"| questions > text | {' | '.join(columns)} | search | gain |", "|---" + "|--:" * 7 + "|"]
    for task in tasks:
        row = [task.mrr(rank, 1) for rank in columns.values()]
        shipped = float(np.mean([mrr_at_k(q.found, q.relevance, 10) for q in task.questions[1::2]]))
        cells = " | ".join(f"{value:.3f}" for value in (*row, shipped))
        lines.append(f"| {task.name} | {cells} | {shipped - max(row[:2]):+.3f} |")
    shipped_name = f"LEXICAL_WEIGHT = {fusion.LEXICAL_WEIGHT}, SHARPNESS = {fusion.SHARPNESS}"
    return "\n".join([*lines, "", f"best: {sum_name}; shipped: {shipped_name}; best RRF: {rrf_name}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with one BEIR folder per language")
    parser.add_argument("--model", help="as for Embedder; default: the bundled one")
    parser.add_argument("--questions", type=int, default=200, help="per row, evenly spaced")
    parser.add_argument("--cache", type=Path, help="keep collections and rankings here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        print(report(read_tasks(arguments.data, arguments.model, arguments.questions, cache)))


if __name__ == "__main__":
    main()
