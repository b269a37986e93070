"""Metrics against a hand-computed example and ranx; data set formats; a whole evaluation."""

import json
import random
from math import log2

import pytest
from fakes import FakeEmbedder

from indexer.evaluation import (
    evaluate,
    load_datasets,
    mrr_at_k,
    ndcg_at_k,
    recall_at_k,
    spearman,
    with_queries_of,
)
from indexer.evaluation.datasets import InvalidDataset
from indexer.evaluation.runner import Report, score_rankings


def test_metrics_by_hand():
    ranking, grades = ["a", "b", "c", "d"], {"b": 2.0, "d": 1.0, "x": 1.0, "a": 0.0}
    ideal = 2 + 1 / log2(3) + 1 / log2(4)
    assert ndcg_at_k(ranking, grades, 10) == pytest.approx((2 / log2(3) + 1 / log2(5)) / ideal)
    assert ndcg_at_k(ranking, grades, 2) == pytest.approx((2 / log2(3)) / (2 + 1 / log2(3)))
    assert mrr_at_k(ranking, grades, 10) == 0.5
    assert mrr_at_k(ranking, grades, 1) == 0.0
    assert recall_at_k(ranking, grades, 4) == pytest.approx(2 / 3)
    assert ndcg_at_k(ranking, {}, 10) == recall_at_k(ranking, {}, 10) == 0.0


def test_spearman_by_hand():
    assert spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)
    assert spearman([1, 1], [1, 2]) == 0.0
    with pytest.raises(ValueError, match="the series have 1 and 2 values"):
        spearman([1], [1, 2])


@pytest.mark.slow  # ranx compiles for some seconds
@pytest.mark.filterwarnings("ignore")
def test_metrics_agree_with_ranx():
    from ranx import Qrels, Run
    from ranx import evaluate as ranx_evaluate

    chance = random.Random(1)
    documents = [f"d{n}" for n in range(50)]
    qrels = {f"q{n}": {d: chance.randint(1, 3) for d in chance.sample(documents, 5)} for n in range(30)}
    rankings = {query: chance.sample(documents, 40) for query in qrels}
    run = {query: {d: 1.0 / rank for rank, d in enumerate(r, 1)} for query, r in rankings.items()}
    theirs = ranx_evaluate(Qrels(qrels), Run(run), ["ndcg@10", "mrr@10", "recall@10", "recall@100"])
    assert score_rankings(rankings, qrels) == pytest.approx(theirs)


def write_beir(folder, texts, queries):
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{n}", "title": "", "text": text}) for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    asked = [json.dumps({"_id": f"q{n}", "text": text}) for n, text in enumerate(queries)]
    (folder / "queries.jsonl").write_text("\n".join(asked))
    rows = [f"q{n}\td{n}\t1" for n in range(len(queries))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))


def test_evaluates_the_whole_search_per_language(tmp_path):
    write_beir(tmp_path / "en", ["red apple pie", "blue sea water"], ["apple pie", "sea water"])
    write_beir(tmp_path / "de", ["roter Apfel Kuchen", "blaues Meer Wasser"], ["Apfel Kuchen", "Meer Wasser"])
    datasets = load_datasets(tmp_path)
    assert [dataset.name for dataset in datasets] == ["de", "en"]
    report = evaluate(datasets, FakeEmbedder(dim=256))
    perfect = {"ndcg@10": 1.0, "mrr@10": 1.0, "recall@10": 1.0, "recall@100": 1.0}
    assert report.sets["en"] == {"dense": perfect, "lexical": perfect, "hybrid": perfect}
    assert report.to_json()["hybrid"] == perfect
    assert "| de | hybrid | 1.0000 |" in report.to_markdown()
    other = Report("older", {"de": {"dense": {"ndcg@10": 0.25}}})
    assert "| de | dense | 1.0000 (0.2500, +0.7500) | 1.0000 |" in report.to_markdown(other)
    crossed = with_queries_of(datasets[0], datasets[1])
    assert (crossed.name, crossed.corpus, crossed.queries) == (
        "en>de",
        datasets[0].corpus,
        datasets[1].queries,
    )


def test_bitext_formats(tmp_path):
    rows = [("one word", "one word"), ("two words here", "two words here")]
    (tmp_path / "pairs.tsv").write_text("en\tde\n" + "\n".join("\t".join(row) for row in rows))
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps({"en": a, "de": b, "fr": b}) for a, b in rows))
    folder = tmp_path / "tatoeba"
    folder.mkdir()
    (folder / "tatoeba.deu-eng.deu").write_text("one word\ntwo words here\n")
    (folder / "tatoeba.deu-eng.eng").write_text("one word\ntwo words here\n")
    names = {
        path: [d.name for d in load_datasets(tmp_path / path)]
        for path in ("pairs.tsv", "pairs.jsonl", "tatoeba")
    }
    assert names == {"pairs.tsv": ["en-de"], "pairs.jsonl": ["en-de", "en-fr"], "tatoeba": ["eng-deu"]}
    (tmp_path / "three.tsv").write_text("de\ten\tzh-TW\nja\tyes\t\nnein\tno\t不\n")
    three = {dataset.name: dataset for dataset in load_datasets(tmp_path / "three.tsv")}
    assert list(three) == ["en-de", "en-zh-TW"]
    assert (three["en-zh-TW"].first, three["en-zh-TW"].second) == (["no"], ["不"])
    report = evaluate(load_datasets(tmp_path / "pairs.tsv"), FakeEmbedder(dim=256))
    assert report.sets == {"en-de": {"dense": {"accuracy": 1.0}}}


def test_similarity_table(tmp_path):
    table = tmp_path / "sts.csv"
    table.write_text('sentence1,sentence2,score\n"a b, c","a b, c",5\na b c,a b x,3\na b c,x y z,0\n')
    report = evaluate(load_datasets(table), FakeEmbedder(dim=256))
    assert report.sets == {"sts": {"dense": {"spearman": pytest.approx(1.0)}}}


def test_refuses_what_is_no_data_set(tmp_path):
    with pytest.raises(InvalidDataset, match="there is no data set at"):
        load_datasets(tmp_path / "missing")
    with pytest.raises(InvalidDataset, match="is no data set; expected a BEIR folder"):
        load_datasets(tmp_path)
    write_beir(tmp_path / "x", ["a"], ["a"])
    with pytest.raises(InvalidDataset, match=r"has no qrels/dev\.tsv"):
        load_datasets(tmp_path / "x", split="dev")
    (tmp_path / "x" / "corpus.jsonl").write_text('{"_id": "d0", "text": "a"}\n{"_id": "d1", "txt": "b"}\n')
    with pytest.raises(InvalidDataset, match="line 2 is not a JSON object with the texts _id and text"):
        load_datasets(tmp_path / "x")
    bitext = tmp_path / "bitext"
    bitext.mkdir()
    (bitext / "a.de").write_text("eins\nzwei\n")
    (bitext / "a.en").write_text("one\n")
    with pytest.raises(InvalidDataset, match=r"a\.en has 1 lines, a\.de 2; line by line"):
        load_datasets(bitext)
