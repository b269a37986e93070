"""Cited answers from a collection: retrieve, pack, generate, cite. The whole flow is `pipeline.py`.

answer(collection, "Who wrote it?")                                  # extractive: quotes, no language model
answer(collection, "Who wrote it?", generator=make_generator("rwkv:model.pth"))
for piece in answer_stream(collection, "Who wrote it?"): ...         # str, str, ..., Answer
"""

from indexer.answers.generators import make_generator
from indexer.answers.generators.base import Generator, Passage, Quote, Request
from indexer.answers.pipeline import answer, answer_stream

__all__ = ["Generator", "Passage", "Quote", "Request", "answer", "answer_stream", "make_generator"]
