"""Sequential and parallel mode, cuts anywhere, batches of unequal lengths: all the same reading."""

from collections.abc import Callable

import checkpoints as ck
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_embed.config import Version
from rwkv_embed.errors import StateError, TokenizerError
from rwkv_embed.models import base
from rwkv_embed.models.base import Model
from rwkv_embed.ops.chunked import CHUNK
from rwkv_embed.state import State

LENGTHS = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]
ModelOf = Callable[[Version], Model]


def tokens_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_same_state(mine: State, other: State, atol: float = 1e-4) -> None:
    for a, b in zip(mine.tensors, other.tensors, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("version", ck.VERSIONS)
def test_parallel_equals_sequential(model_of: ModelOf, version: Version, length: int) -> None:
    model, tokens = model_of(version), tokens_of(length)
    slow, slow_state = model.forward(tokens, full_output=True, sequential=True)
    fast, fast_state = model.forward(tokens, full_output=True)
    assert fast.shape == (length, 97)
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=0)
    assert_same_state(fast_state, slow_state)


@pytest.mark.parametrize("version", ck.VERSIONS)
@settings(max_examples=12, deadline=None)
@given(
    length=st.sampled_from(LENGTHS),
    cuts=st.lists(st.integers(0, LENGTHS[-1]), max_size=3),
    modes=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_cut_anywhere_and_carry_the_state(
    model_of: ModelOf, version: Version, length: int, cuts: list[int], modes: list[bool]
) -> None:
    model, tokens = model_of(version), tokens_of(length)
    whole, whole_state = model.forward(tokens, full_output=True, sequential=True)
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    state, pieces = None, []
    for start, end, sequential in zip(edges, edges[1:], modes, strict=False):
        logits, state = model.forward(tokens[start:end], state, full_output=True, sequential=sequential)
        pieces.append(logits)
    assert state is not None
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-4, rtol=0)
    assert_same_state(state, whole_state)


@pytest.mark.parametrize("full_output", [False, True])
@pytest.mark.parametrize("version", ck.VERSIONS)
def test_a_row_does_not_depend_on_its_neighbours(model_of: ModelOf, version: Version, full_output: bool) -> None:
    model = model_of(version)
    batch = [tokens_of(length, seed=length) for length in (5, 40, 0, 17, 1)]
    starts = [model.forward(tokens_of(3, seed=i))[1] for i in range(len(batch))]
    hidden, states = model.hidden(batch, starts, full_output)
    for row, tokens, start, state in zip(hidden, batch, starts, states, strict=True):
        alone, alone_state = model.hidden([tokens], [start], full_output)
        assert row.shape == ((len(tokens), model.n_embd) if full_output else (model.n_embd,))
        torch.testing.assert_close(row, alone[0], atol=1e-5, rtol=0)
        assert_same_state(state, alone_state[0], atol=1e-5)


@pytest.mark.parametrize("version", ck.VERSIONS)
def test_long_texts_are_read_in_windows(
    model_of: ModelOf, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(version)
    batch = [tokens_of(70), tokens_of(9, seed=1), tokens_of(33, seed=2)]
    whole, states = model.hidden(batch)
    monkeypatch.setattr(base, "WINDOW_TOKENS", 60)
    windowed, windowed_states = model.hidden(batch)
    torch.testing.assert_close(windowed, whole, atol=1e-5, rtol=0)
    for mine, other in zip(windowed_states, states, strict=True):
        assert_same_state(mine, other)


@pytest.mark.parametrize("version", ck.VERSIONS)
def test_the_state_given_is_left_alone(model_of: ModelOf, version: Version) -> None:
    model = model_of(version)
    _, state = model.forward(tokens_of(10))
    before = state.clone()
    first, _ = model.forward(tokens_of(20), state)
    again, _ = model.forward(tokens_of(20), state)
    assert all(torch.equal(a, b) for a, b in zip(state.tensors, before.tensors, strict=True))
    assert torch.equal(first, again)


def test_no_tokens(model_of: ModelOf) -> None:
    model = model_of("7")
    _, state = model.forward([1, 2, 3])
    logits, same = model.forward([], state)
    assert logits.tolist() == [0.0] * 97
    assert_same_state(same, state, atol=0)
    hidden, states = model.hidden([])
    assert hidden.shape == (0, 32)
    assert states == []


def test_tokens_outside_the_vocabulary_are_refused(model_of: ModelOf) -> None:
    with pytest.raises(TokenizerError, match="token 97 is outside the model's vocabulary of 97"):
        model_of("6").forward([3, 97])
    with pytest.raises(TokenizerError, match="token -1 is outside"):
        model_of("6").forward([-1])


def test_a_state_of_another_model_is_refused(model_of: ModelOf) -> None:
    with pytest.raises(StateError, match=r"a state of RWKV-6, 2 layers.* was given to a model of RWKV-7"):
        model_of("7").forward([1], model_of("6").zero_state())
    with pytest.raises(ValueError, match="1 states were given for 2 texts"):
        model_of("7").hidden([[1], [2]], [model_of("7").zero_state()])
