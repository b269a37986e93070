"""Measure quality: metrics, labelled data sets, the evaluation of an embedder and the search around it."""

from indexer.evaluation.datasets import (
    BitextDataset,
    Dataset,
    RetrievalDataset,
    SimilarityDataset,
    load_datasets,
    with_queries_of,
)
from indexer.evaluation.metrics import mrr_at_k, ndcg_at_k, recall_at_k, spearman
from indexer.evaluation.runner import Report, evaluate

__all__ = [
    "BitextDataset",
    "Dataset",
    "Report",
    "RetrievalDataset",
    "SimilarityDataset",
    "evaluate",
    "load_datasets",
    "mrr_at_k",
    "ndcg_at_k",
    "recall_at_k",
    "spearman",
    "with_queries_of",
]
