"""A state is a value: copied, saved and restored exactly, and only for its own model."""

from collections.abc import Callable

import checkpoints as ck
import pytest
import torch

from rwkv_embed.config import Version
from rwkv_embed.errors import StateError
from rwkv_embed.models.base import Model
from rwkv_embed.state import State

ModelOf = Callable[[Version], Model]


@pytest.mark.parametrize("version", ck.VERSIONS)
def test_saved_and_restored_exactly(model_of: ModelOf, version: Version) -> None:
    model = model_of(version)
    _, state = model.forward(list(range(20)))
    restored = State.from_bytes(state.to_bytes(), model.config)
    assert restored.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(restored.tensors, state.tensors, strict=True))
    assert torch.equal(model.forward([5], restored)[0], model.forward([5], state)[0])


@pytest.mark.parametrize(("version", "shape"), [("4", (2, 3, 32)), ("6", (2, 2, 16, 16)), ("7", (2, 2, 16, 16))])
def test_recurrent_part(model_of: ModelOf, version: Version, shape: tuple[int, ...]) -> None:
    _, state = model_of(version).forward([1, 2, 3])
    assert state.wkv.shape == shape
    assert torch.equal(state.wkv[1, 0], state.tensors[6 if version == "4" else 4][... if version == "4" else 0])


def test_damaged_or_foreign_bytes_are_refused(model_of: ModelOf) -> None:
    data = model_of("7").zero_state().to_bytes()
    for damaged in (b"", data[:100], data[:-1], b"\xff" * 64):
        with pytest.raises(StateError, match=f"these {len(damaged)} bytes are not a saved state"):
            State.from_bytes(damaged)
    with pytest.raises(StateError, match=r"a state of RWKV-7, 2 layers.* given to a model of RWKV-5\.2"):
        State.from_bytes(data, model_of("5.2").config)
    broken = model_of("7").zero_state()
    broken.tensors[1][0, 0, 0] = float("nan")
    with pytest.raises(StateError, match="NaN or infinite"):
        State.from_bytes(broken.to_bytes())
    with pytest.raises(StateError, match="does not have the tensors of RWKV-7"):
        State.from_bytes(State(broken.config, broken.tensors[:-1]).to_bytes())


def test_a_clone_shares_nothing(model_of: ModelOf) -> None:
    state = model_of("4").zero_state()
    state.clone().tensors[0].fill_(1.0)
    assert float(state.tensors[0].sum()) == 0.0
