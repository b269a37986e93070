"""What each way of reading a vector off a model is worth, with and without whitening.

    python -m benchmarks.pooling --model MODEL --retrieval XQUAD/en --bitext ntrex.jsonl --pairs en-de en-ru

Prints a Markdown table: nDCG@10 of questions against paragraphs (BEIR folders), and how often the nearest
sentence of the other language is the translation. Both repairs of `rwkv_embed.whitening` are fitted, without
labels, on the paragraphs and sentences that are searched: a collection's own text.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from indexer.evaluation import BitextDataset, Dataset, RetrievalDataset, load_datasets, ndcg_at_k
from rwkv_embed import Embedder
from rwkv_embed.pooling import Pooling
from rwkv_embed.quantize import truncate
from rwkv_embed.whitening import Whitening

Floats = NDArray[np.float32]
Encode = Callable[[list[str]], Floats]

REPAIRS: dict[str, Callable[[Floats], Whitening] | None] = {
    "as it is": None,
    "whitened": Whitening.whiten,
    "top directions removed": Whitening.remove_top,
}


def texts_of(dataset: Dataset) -> tuple[list[str], list[str]]:
    """What is searched, and what it is searched with."""
    if isinstance(dataset, RetrievalDataset):
        return list(dataset.corpus.values()), list(dataset.queries.values())
    return dataset.first, dataset.second


def score(dataset: Dataset, searched: Floats, asked: Floats) -> float:
    """nDCG@10, or accuracy as the mean of both directions; vectors have length 1."""
    similarity = asked @ searched.T
    if not isinstance(dataset, RetrievalDataset):
        right = np.arange(len(searched))
        return fmean(float((similarity.argmax(axis) == right).mean()) for axis in (0, 1))
    ids = list(dataset.corpus)
    best = np.argsort(-similarity, axis=1)[:, :10]
    return fmean(
        ndcg_at_k([ids[i] for i in row], dataset.qrels[query], 10)
        for query, row in zip(dataset.queries, best, strict=True)
    )


def scores(datasets: list[Dataset], encode: Encode) -> dict[str, list[float]]:
    """Repair -> the score on each data set."""
    pairs = [tuple(encode(texts) for texts in texts_of(dataset)) for dataset in datasets]
    own_text = np.concatenate([searched for searched, _ in pairs])
    results: dict[str, list[float]] = {}
    for name, fit in REPAIRS.items():
        repair = (lambda vectors: vectors) if fit is None else fit(own_text)
        results[name] = [
            score(dataset, truncate(repair(searched), None), truncate(repair(asked), None))
            for dataset, (searched, asked) in zip(datasets, pairs, strict=True)
        ]
    return results


def read_datasets(retrieval: list[Path], bitext: Path | None, pairs: list[str], most: int) -> list[Dataset]:
    """Retrieval sets whole, and the first `most` sentences of the language pairs."""
    datasets = [dataset for path in retrieval for dataset in load_datasets(path)]
    for dataset in load_datasets(bitext) if bitext else []:
        if isinstance(dataset, BitextDataset) and dataset.name in pairs:
            datasets.append(BitextDataset(dataset.name, dataset.first[:most], dataset.second[:most]))
    return datasets


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as for Embedder; default: the bundled one")
    parser.add_argument("--tokenizer", help="world, neox, byte or a tokenizer.json; default: the model's own")
    parser.add_argument("--retrieval", type=Path, nargs="*", default=[], help="BEIR folders")
    parser.add_argument("--bitext", type=Path, help="a .jsonl or .tsv of translations")
    parser.add_argument("--pairs", nargs="*", default=["en-de"], help="pairs of the bitext, as en-de")
    parser.add_argument("--sentences", type=int, default=300, help="sentences of each pair")
    parser.add_argument("--pooling", nargs="*", choices=get_args(Pooling), default=["last", "mean", "state"])
    options = parser.parse_args()
    start = time.perf_counter()
    datasets = read_datasets(options.retrieval, options.bitext, options.pairs, options.sentences)
    print("| pooling | dimensions | " + " | ".join(["", *(d.name for d in datasets)]) + " |")
    print("|---|--:|---|" + "--:|" * len(datasets))
    for pooling in options.pooling:
        embedder = Embedder(options.model, pooling=pooling, tokenizer=options.tokenizer)
        for repair, values in scores(datasets, partial(embedder.encode, normalize_embeddings=False)).items():
            cells = " | ".join(f"{value:.3f}" for value in values)
            print(f"| {pooling} | {embedder.dim} | {repair} | {cells} |")
    print(f"\n{embedder.model_id}, {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
