"""Rerankers against their published formulas; stored passages give the same scores."""

from pathlib import Path

import numpy as np
import pytest

from rwkv_embed import rerank
from rwkv_embed.embedder import Embedder
from rwkv_embed.errors import CheckpointError, StateError
from rwkv_embed.rerank import LikelihoodReranker, StateReranker, StateScorer
from tests.embedder.numpy_rwkv import NumpyBackend, random_tensors, step
from tests.embedder.tiny_language_model import TinyLanguageModel

PASSAGES = ["The Nile is a river.", "", "部署数据库", "Cats sleep a lot."]
QUERY = "which rivers?"


def reranker_tensors(n_layer: int = 2, n_head: int = 2, head_size: int = 4) -> dict[str, np.ndarray]:
    """Random weights in the layout of EmbeddingRWKV's ReRanker: an RWKV-7 with a vocabulary of one token."""
    tensors = random_tensors(7, n_layer, n_head, head_size, vocab_size=1)
    C = n_head * head_size
    rng = np.random.default_rng(8)
    tensors["head.0.weight"] = rng.standard_normal((C, C)).astype(np.float32)
    tensors["head.0.bias"] = rng.standard_normal(C).astype(np.float32)
    tensors["head.2.weight"] = rng.standard_normal((1, C)).astype(np.float32)
    return tensors


def published_logit(tensors: dict[str, np.ndarray], matrices: list[np.ndarray]) -> float:
    """One step of an ordinary RWKV-7 that has seen no token but whose WKV states are the embedder's."""
    C = tensors["head.0.bias"].size
    nothing = np.zeros(C, np.float32)
    state = [array for matrix in matrices for array in (nothing, matrix, nothing)]
    x, _ = step(tensors, state, 0)
    inner = np.tanh(tensors["head.0.weight"] @ x + tensors["head.0.bias"])
    return float(tensors["head.2.weight"][0] @ inner)


def test_scorer_is_the_published_formula() -> None:
    tensors = reranker_tensors(n_layer=3)
    states = np.random.default_rng(0).standard_normal((3, 5, 2, 4, 4)).astype(np.float32)
    expected = [published_logit(tensors, list(states[:, row])) for row in range(5)]
    np.testing.assert_allclose(StateScorer(tensors)(states), expected, atol=1e-4)


@pytest.mark.parametrize("layers", [None, [0, 2], [-1, 1]])
def test_state_reranker_reads_instruction_passage_query_and_eos(layers: list[int] | None) -> None:
    n_layer = 2 if layers is None else 3
    backend = NumpyBackend(n_layer=n_layer)
    tensors = reranker_tensors()
    scores = StateReranker(Embedder(backend), tensors, layers).score(QUERY, PASSAGES)
    assert scores.dtype == np.float32
    for passage, score in zip(PASSAGES, scores, strict=True):
        text = (
            "Instruct: Given a query, retrieve documents that answer the query\n"
            f"Document: {passage}\nQuery: {QUERY}"
        )
        _, (state,) = backend.hidden([[*backend.tokenizer.encode(text), 257]])
        matrices = state[1::3]
        logit = published_logit(tensors, [matrices[layer] for layer in layers or range(n_layer)])
        assert score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_stored_passages_give_the_same_scores_for_the_query_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = NumpyBackend()
    reranker = StateReranker(Embedder(backend), reranker_tensors())
    monkeypatch.setattr(rerank, "BATCH", 3)
    online = reranker.score(QUERY, PASSAGES)
    stored = [reranker.passage_state(passage) for passage in PASSAGES]
    backend.tokens_read = 0
    offline = reranker.score_states(QUERY, stored)
    np.testing.assert_allclose(offline, online, atol=1e-6)
    np.testing.assert_array_equal(reranker.score_states(QUERY, stored), offline)  # states are not used up
    assert backend.tokens_read == 2 * len(PASSAGES) * (len(f"Query: {QUERY}") + 1)
    assert reranker.score(QUERY, []).shape == reranker.score_states(QUERY, []).shape == (0,)


def test_state_reranker_refuses_what_does_not_fit() -> None:
    reranker = StateReranker(Embedder(NumpyBackend()), reranker_tensors())
    other = StateReranker(Embedder(NumpyBackend(seed=1)), reranker_tensors())
    with pytest.raises(StateError, match="belongs to another model"):
        other.score_states(QUERY, [reranker.passage_state("text")])
    with pytest.raises(
        CheckpointError, match=r"has 3 blocks but is to look at layers \[0, 1\] of the embedder's 2;"
    ):
        StateReranker(Embedder(NumpyBackend()), reranker_tensors(n_layer=3))
    with pytest.raises(CheckpointError, match=r"to look at layers \[0, 7\] of the embedder's 2;"):
        StateReranker(Embedder(NumpyBackend()), reranker_tensors(), [0, 7])
    with pytest.raises(CheckpointError, match="has 1 heads of 4, the embedder 2 of 4"):
        StateReranker(Embedder(NumpyBackend()), reranker_tensors(n_head=1))
    with pytest.raises(CheckpointError, match="tiny is an RWKV-7 language-model"):
        StateReranker(Embedder(NumpyBackend(eos=None)), reranker_tensors())
    with pytest.raises(CheckpointError, match=r"not a reranker checkpoint: head\.0\.weight, .* missing"):
        StateScorer({})


def test_reranker_checkpoint_file(tmp_path: Path) -> None:
    import torch

    tensors = reranker_tensors()
    content: dict[str, object] = {f"reranker.{name}": torch.from_numpy(t) for name, t in tensors.items()}
    content["reranker_layer_idx"] = [0, 2]
    torch.save(content, tmp_path / "reranker.pth")
    embedder = Embedder(NumpyBackend(n_layer=3))
    loaded = StateReranker.load(embedder, tmp_path / "reranker.pth").score(QUERY, PASSAGES)
    np.testing.assert_allclose(
        loaded, StateReranker(embedder, tensors, [0, 2]).score(QUERY, PASSAGES), atol=1e-6
    )


    for wrong in ("abc", 2.5, [0, "x"]):
        torch.save(content | {"reranker_layer_idx": wrong}, tmp_path / "reranker.pth")
        with pytest.raises(
            CheckpointError, match=r"r\.pth: reranker_layer_idx is .*, expected a list of the embedder's layers"
        ):
            StateReranker.load(embedder, tmp_path / "reranker.pth")


def test_likelihood_needs_a_token_before_the_query() -> None:
    with pytest.raises(ValueError, match="between is empty: the query's first token needs one before it"):
        LikelihoodReranker(TinyLanguageModel(), between="")


def test_likelihood_is_the_mean_log_probability_of_the_query() -> None:
    model = TinyLanguageModel()
    reranker = LikelihoodReranker(model, before="P: ", between=" Q: ")
    scores = reranker.score(QUERY, PASSAGES)
    assert scores.dtype == np.float32
    for passage, score in zip(PASSAGES, scores, strict=True):
        context = [0, *model.tokenizer.encode(f"P: {passage} Q: ")]
        tokens = model.tokenizer.encode(QUERY)
        expected = model.log_probability(context + tokens, len(context)) / len(tokens)
        assert score == pytest.approx(expected, abs=1e-4)
    np.testing.assert_array_equal(reranker.score("", PASSAGES), np.zeros(4))


def test_likelihood_from_stored_passages() -> None:
    model = TinyLanguageModel()
    reranker = LikelihoodReranker(model, model_id="tiny")
    stored = [reranker.passage_state(passage) for passage in PASSAGES]
    model.tokens_read = 0
    offline = reranker.score_states(QUERY, stored)
    assert model.tokens_read == len(PASSAGES) * len("\n\nA question that this passage answers: " + QUERY)
    np.testing.assert_allclose(offline, reranker.score(QUERY, PASSAGES), atol=1e-6)
    for other in (LikelihoodReranker(model, before="Text: ", model_id="tiny"), LikelihoodReranker(model)):
        with pytest.raises(StateError, match="belongs to another model or template"):
            other.score_states(QUERY, stored)
    with pytest.raises(ValueError, match="storing passages needs model_id"):
        LikelihoodReranker(model).passage_state("text")
    with pytest.raises(StateError, match="belongs to another model or template"):
        reranker.score_states(QUERY, [b""])
