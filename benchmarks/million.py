"""A million passages on one machine: `python -m benchmarks.million [--chunks N] [--store DIR|URL]`.

A store that is there is filled up and kept, which spares the half hour of ingest the next time.

Texts are three clauses each of the Universal Declaration (udhr.jsonl) behind a number; their vectors are the
normalised sums of the clauses' real vectors and some noise, because embedding a million texts would measure
the encoder and not the store. Queries are excerpts of clauses and embedded for real, in the time that is told.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from indexer import Store, open_store
from indexer.collection import Collection
from indexer.types import ChunkingOptions, Document, SearchOptions
from rwkv_embed import Embedder

TEXTS = Path(__file__).with_name("udhr.jsonl")
CLAUSES_PER_TEXT = 3
NOISE = 0.5  # length of the noise beside a sum of unit vectors
BUCKETS = 10_000
QUERIES = 200
RECALL_QUERIES = 50
SELECTIVITIES = (1.0, 0.1, 0.01, 0.001, 0.0001)


class Texts:
    """Text number n and its vector, the same each time they are asked for."""

    def __init__(self, embedder: Embedder) -> None:
        lines = [json.loads(line)["text"] for line in TEXTS.read_text(encoding="utf-8").splitlines()]
        self.clauses = [
            clause for line in lines for part in line.split(",") if len(clause := part.strip()) > 12
        ]
        self.vectors = embedder.encode_document(self.clauses)

    def chosen(self, n: int) -> NDArray[np.int64]:
        return np.random.default_rng(n).integers(len(self.clauses), size=CLAUSES_PER_TEXT)

    def document(self, n: int) -> Document:
        text = f"{n}. " + ", ".join(self.clauses[i] for i in self.chosen(n))
        return Document(str(n), text, language="en", metadata={"bucket": n % BUCKETS})

    def vector(self, n: int) -> NDArray[np.float32]:
        dim = self.vectors.shape[1]
        noise = np.random.default_rng(n).standard_normal(dim, np.float32) * np.float32(NOISE / np.sqrt(dim))
        total = self.vectors[self.chosen(n)].sum(0) + noise
        return np.asarray(total / np.linalg.norm(total), np.float32)


class WithKnownVectors:
    """An embedder that looks the vector of a numbered text up and reads everything else."""

    def __init__(self, embedder: Embedder, texts: Texts) -> None:
        self._embedder, self._texts = embedder, texts

    def encode_document(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._texts.vector(int(text.partition(".")[0])) for text in inputs])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ingest, index and search very many passages.")
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--store", help="where the store is kept, or already is: a directory or postgresql://…")
    arguments = parser.parse_args()
    embedder = Embedder()
    texts = Texts(embedder)
    known = WithKnownVectors(embedder, texts)
    with tempfile.TemporaryDirectory() as folder:
        location = arguments.store or Path(folder) / "store"
        with open_store(location, lambda model: known) as store:
            filled(store, texts, arguments.chunks)
        with open_store(location, lambda model: embedder) as store:  # the sentences of passages are read for real
            collection = store.collection("default")
            stats = collection.stats()
            print(f"{stats['index']}; on disk: {sum(stats['bytes'].values()) / 1e9:.2f} GB")
            measure(collection, excerpts(texts, QUERIES))
    print(f"resident: {psutil.Process().memory_info().rss / 1e9:.2f} GB")


def filled(store: Store, texts: Texts, count: int) -> None:
    """Fill the store's collection up to `count` passages and index them; what is there already stays."""
    collection = store.collection_or_create("default", chunking=ChunkingOptions(max_tokens=1_000))
    there = collection.count()
    if there < count:
        start = time.perf_counter()
        collection.upsert(documents(texts, there, count))
        print(f"ingest: {(count - there) / (time.perf_counter() - start):,.0f} passages/s")
        start = time.perf_counter()
        collection.index.close()  # waits for what the ingest has begun in the background
        print(f"index: {time.perf_counter() - start:.1f} s")


def measure(collection: Collection, queries: Sequence[str]) -> None:
    """Print times and recall of all modes and of filters from wide to narrow."""
    for mode in ("dense", "lexical", "hybrid"):
        print(f"{mode}: {latency(collection, queries, SearchOptions(mode=mode))}", flush=True)
    print(f"recall@10: {recall(collection, queries, SearchOptions(mode='dense'))[0]:.3f}")
    for share in SELECTIVITIES:
        options = SearchOptions(mode="dense", where=f"bucket < {max(1, round(share * BUCKETS))}")
        for filtered in (options, replace(options, mode="hybrid")):
            took = latency(collection, queries[:RECALL_QUERIES], filtered)
            print(f"filter {share:.2%}, {filtered.mode}: {took}")
        found, least = recall(collection, queries, options)
        print(f"filter {share:.2%}: recall@10 {found:.3f}, at least {least} results", flush=True)


def documents(texts: Texts, first: int, count: int) -> Iterator[Document]:
    for n in range(first, count):
        if n and n % 100_000 == 0:
            print(f"  {n:,} ingested", flush=True)
        yield texts.document(n)


def excerpts(texts: Texts, count: int) -> list[str]:
    """Up to eight words in a row of clauses drawn at random."""
    rng = np.random.default_rng(0)
    result = []
    for clause in rng.choice(texts.clauses, count):
        words = clause.split()
        first = int(rng.integers(max(1, len(words) - 7)))
        result.append(" ".join(words[first : first + 8]))
    return result


def latency(collection: Collection, queries: Sequence[str], options: SearchOptions) -> str:
    """Of a search, the query's embedding included: the first round, which reads into memory what it needs, and the
    second; wall-clock time, and processor time for a machine that does other work as well."""

    def seconds(query: str) -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        collection.search(query, options)
        return time.perf_counter() - wall, time.process_time() - processor

    rounds = [1e3 * np.array([seconds(query) for query in queries]) for _ in range(2)]
    (wall, processor), (wall_99, processor_99) = np.percentile(rounds[1], [50, 99], axis=0)
    return (
        f"p50 {wall:.1f} ms ({processor:.1f} of processor time), p99 {wall_99:.0f} ({processor_99:.0f}); "
        f"the first time p50 {np.median(rounds[0][:, 0]):.0f} ({np.median(rounds[0][:, 1]):.0f}), "
        f"most {rounds[0][:, 0].max():.0f} ({rounds[0][:, 1].max():.0f})"
    )


def recall(collection: Collection, queries: Sequence[str], options: SearchOptions) -> tuple[float, int]:
    """Recall@10 against exact search, and the fewest results of a query."""

    @cache
    def found(query: str, exact: bool) -> frozenset[int]:
        return frozenset(hit.chunk_id for hit in collection.search(query, replace(options, exact=exact)))

    shares = [len(found(q, True) & found(q, False)) / len(found(q, True)) for q in queries[:RECALL_QUERIES]]
    return float(np.mean(shares)), min(len(found(q, False)) for q in queries[:RECALL_QUERIES])


if __name__ == "__main__":
    main()
