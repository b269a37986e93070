"""Constant churn for a long time: memory, file handles and threads stay where they were after the warm-up."""

import gc
import random

import psutil
import pytest
from fakes import PIPELINE, FakeEmbedder

from indexer.pipeline import Pipeline
from indexer.search import search
from indexer.store import open_store
from indexer.types import Document, SearchOptions
from rwkv_embed import Embedder

DOCUMENTS = 100  # put in each round, with texts that were never seen; a fifth of them is deleted
IDS = 4_000  # so that most documents that come in replace one
SEARCHES = 10
COMPACTION = 100  # rounds
WORDS = ["rain", "bread", "数据库", "Brücke", "école", "река", "서울", "harbour", "seven", "market"]


class Forgetful(FakeEmbedder):
    """The fake without its list of everything it has read."""

    def encode_document(self, inputs):
        return self._vectors(inputs)


def usage() -> tuple[int, int, int]:
    gc.collect()
    me = psutil.Process()
    return me.memory_info().rss, me.num_fds(), me.num_threads()


def churn(store, collection, first: int, last: int) -> None:
    for n in range(first, last):
        chance = random.Random(n)
        report = collection.upsert(
            Document(f"d{id}", f"{' '.join(chance.choices(WORDS, k=5))} number {n} of {id}")
            for id in chance.sample(range(IDS), DOCUMENTS)
        )
        assert report.chunks_embedded == DOCUMENTS
        collection.delete([f"d{id}" for id in chance.sample(range(IDS), DOCUMENTS // 5)])
        for _ in range(SEARCHES):
            query = f"{chance.choice(WORDS)} number {chance.randrange(n + 1)}"
            search(collection, query, SearchOptions(mode=chance.choice(["dense", "lexical", "hybrid"])))
        if n % COMPACTION == COMPACTION - 1:
            store.compact()


@pytest.mark.parametrize(
    ("embedder", "pipeline", "rounds", "growth"),
    [
        pytest.param(Forgetful, PIPELINE, 12, 1.25, id="short"),
        pytest.param(Embedder, Pipeline(), 1_000, 1.05, id="long", marks=pytest.mark.slow),
    ],
)
def test_memory_handles_and_threads_stay_flat(tmp_path, embedder, pipeline, rounds, growth):
    """Long: 100,000 texts through the bundled model, 10,000 searches. Short: sees a large leak only."""
    model = embedder()
    with open_store(tmp_path / "store", lambda model_id: model, pipeline=pipeline) as store:
        collection = store.create_collection("default")
        warm = max(rounds // 5, 5)
        churn(store, collection, 0, warm)
        before = usage()
        churn(store, collection, warm, rounds)
        after = usage()
        print(f"{rounds * DOCUMENTS:,} embeds, {rounds * SEARCHES:,} searches: (bytes, handles, threads)")
        print(f"{before} after {warm} rounds, {after} after {rounds}")
        assert after[0] <= min(before[0] * growth, before[0] + 50e6)
        assert after[1] <= before[1] + 1
        assert after[2] <= before[2] + 1
        assert store.verify().problems == []
