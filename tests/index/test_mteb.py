"""Our models in MTEB, on tasks made of the files of data/eval: no network."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb", reason="MTEB IS NOT INSTALLED: pip install 'rwkv-embed[eval]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of mteb and what it brings

import mteb  # noqa: E402  after the check that it is there
from datasets import Dataset  # noqa: E402
from mteb.abstasks import AbsTaskBitextMining, AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import EncoderProtocol, SearchProtocol  # noqa: E402

from indexer.evaluation import evaluate, load_datasets  # noqa: E402
from indexer.evaluation.datasets import RetrievalDataset  # noqa: E402
from indexer.evaluation.mteb import MTEBEncoder, MTEBSearch  # noqa: E402
from rwkv_embed import Embedder  # noqa: E402

DATA = Path(__file__).parents[2] / "data" / "eval"


def described(name: str, kind: Any, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Made of local files.",
        type=kind,
        dataset={"path": "local/files", "revision": "1"},
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
    )


def sample() -> RetrievalDataset:
    """The English questions of data/eval/sample-crosslingual and the articles that answer them."""
    (whole,) = load_datasets(DATA / "sample-crosslingual")
    assert isinstance(whole, RetrievalDataset)
    queries = {id: text for id, text in whole.queries.items() if id.endswith(".en")}
    qrels = {id: whole.qrels[id] for id in queries}
    wanted = {document for grades in qrels.values() for document in grades}
    return RetrievalDataset("sample", {id: whole.corpus[id] for id in sorted(wanted)}, queries, qrels)


class Crosslingual(AbsTaskRetrieval):
    """The sample."""

    metadata = described("SampleCrosslingual", "Retrieval", "ndcg_at_10")

    def load_data(self, **_: Any) -> None:
        found = sample()
        parts = {
            "corpus": Dataset.from_list([{"id": id, "text": text} for id, text in found.corpus.items()]),
            "queries": Dataset.from_list([{"id": id, "text": text} for id, text in found.queries.items()]),
            "relevant_docs": {
                query: {document: int(grade) for document, grade in grades.items()}
                for query, grades in found.qrels.items()
            },
            "top_ranked": None,
        }
        self.dataset, self.data_loaded = {"default": {"test": parts}}, True


class Reranking(Crosslingual):
    """The same; only the first 30 documents may be found."""

    metadata = described("SampleReranking", "Reranking", "ndcg_at_10")

    def load_data(self, **_: Any) -> None:
        super().load_data()
        parts = self.dataset["default"]["test"]
        parts["top_ranked"] = dict.fromkeys(parts["queries"]["id"], list(parts["corpus"]["id"])[:30])


class Declaration(AbsTaskBitextMining):
    """English and German sentences of data/eval/bitext."""

    metadata = described("Declaration", "BitextMining", "accuracy")

    def load_data(self, **_: Any) -> None:
        rows = [line.split("\t") for line in (DATA / "bitext" / "udhr.tsv").read_text("utf-8").splitlines()]
        english, german = rows[0].index("en"), rows[0].index("de")
        pairs = [{"sentence1": row[english], "sentence2": row[german]} for row in rows[1:]]
        self.dataset, self.data_loaded = {"test": Dataset.from_list(pairs)}, True


def scores(model: Any, task: Any) -> dict[str, float]:
    results = mteb.evaluate(model, task, cache=None, encode_kwargs={"show_progress_bar": False})
    return results.task_results[0].scores["test"][0]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture(scope="module")
def ours(embedder: Embedder) -> Any:
    """The same measured by `rwkv-embed eval`."""
    return evaluate([sample()], embedder, ("dense", "hybrid")).sets["sample"]


def test_the_search_scores_in_mteb_what_it_scores_here(embedder: Embedder, ours: Any) -> None:
    for mode in ("dense", "hybrid"):
        search = MTEBSearch(embedder, mode)
        assert isinstance(search, SearchProtocol) and not isinstance(search, EncoderProtocol)
        with closing(search):
            theirs = scores(search, Crosslingual())
        assert theirs["ndcg_at_10"] == pytest.approx(ours[mode]["ndcg@10"], abs=1e-3)
        assert theirs["recall_at_100"] == pytest.approx(ours[mode]["recall@100"], abs=1e-3)


def test_the_encoder_compares_whole_documents(embedder: Embedder, ours: Any) -> None:
    """The search cuts documents into passages, the encoder does not: near, not equal."""
    encoder = MTEBEncoder(embedder)
    assert isinstance(encoder, EncoderProtocol)
    assert scores(encoder, Crosslingual())["ndcg_at_10"] == pytest.approx(ours["dense"]["ndcg@10"], abs=0.15)


def test_bitext(embedder: Embedder) -> None:
    pairs = {dataset.name: dataset for dataset in load_datasets(DATA / "bitext" / "udhr.tsv")}
    expected = evaluate([pairs["en-de"]], embedder).sets["en-de"]["dense"]["accuracy"]
    assert scores(MTEBEncoder(embedder), Declaration())["accuracy"] == pytest.approx(expected, abs=0.05)


def test_reranking_finds_the_documents_that_it_may(embedder: Embedder) -> None:
    search, task = MTEBSearch(embedder), Reranking()
    task.load_data()
    parts = task.dataset["default"]["test"]
    with closing(search):
        search.index(parts["corpus"])
        found = search.search(parts["queries"].select(range(5)), top_k=10, top_ranked=parts["top_ranked"])
    allowed = set(list(parts["corpus"]["id"])[:30])
    assert all(len(hits) == 10 and allowed.issuperset(hits) for hits in found.values())


def test_results_are_filed_by_model_and_mode(embedder: Embedder) -> None:
    meta = MTEBSearch(embedder, "lexical").mteb_model_meta
    assert (meta.name, meta.revision) == (f"rwkv-embed/{embedder.model_id}-lexical", embedder.fingerprint)
