"""The state of a model after some tokens: everything it remembers of them, a value like a number.

A state is never changed in place and never shared between texts: reading on returns a new one. The order and
shapes of its tensors are those of the reference implementation (`ModelConfig.state_shapes`, layer after layer),
so a state can be compared, tensor by tensor, with PyPI's `rwkv`.

On disk a state is a safetensors file: tensors `0000`, `0001`, ... and its model's sizes in the metadata.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rwkv_embed.config import ModelConfig
from rwkv_embed.errors import StateError

# RWKV-4 keeps numerator and denominator divided by exp(pp); nothing read yet is the logarithm of (almost) zero.
_NOTHING_READ = -1e30


@dataclass(frozen=True, eq=False)
class State:
    """One text's state: `tensors` of float32 in the order of the reference implementation, for one `config`."""

    config: ModelConfig
    tensors: list[Tensor]

    @classmethod
    def zeros(cls, config: ModelConfig) -> "State":
        """The state of a model that has read nothing."""
        tensors = [torch.zeros(shape) for _ in range(config.n_layer) for shape in config.state_shapes]
        if config.version == "4":
            for pp in tensors[3::5]:
                pp.fill_(_NOTHING_READ)
        return cls(config, tensors)

    @property
    def wkv(self) -> Tensor:
        """The recurrent part alone: (layers, H, N, N), or for RWKV-4 its aa, bb, pp as (layers, 3, A)."""
        if self.config.version == "4":
            per_layer = (self.tensors[start : start + 3] for start in range(1, len(self.tensors), 5))
            return torch.stack([torch.stack(tensors) for tensors in per_layer])
        return torch.stack(self.tensors[1::3])

    def clone(self) -> "State":
        return State(self.config, [tensor.clone() for tensor in self.tensors])

    def to_bytes(self) -> bytes:
        """The state as a safetensors file."""
        from safetensors.torch import save

        tensors = {f"{i:04d}": tensor.contiguous() for i, tensor in enumerate(self.tensors)}
        return save(tensors, metadata={"format": "rwkv-state", "config": json.dumps(asdict(self.config))})

    @classmethod
    def from_bytes(cls, data: bytes, config: ModelConfig | None = None) -> "State":
        """The state saved by `to_bytes`; with `config`, only if it fits a model of these sizes.

        Raises StateError when the bytes are damaged or belong to a model of other sizes.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            loaded = load(data)
            (header_length,) = struct.unpack("<Q", data[:8])
            saved = json.loads(data[8 : 8 + header_length])["__metadata__"]["config"]
            state = cls(ModelConfig(**json.loads(saved)), [loaded[name] for name in sorted(loaded)])
            expected = [shape for _ in range(state.config.n_layer) for shape in state.config.state_shapes]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StateError(f"these {len(data)} bytes are not a saved state ({error!r}); read the text again") from error
        if config is not None:
            check_state(state, config)
        if [tuple(tensor.shape) for tensor in state.tensors] != expected:
            raise StateError(f"the saved state does not have the tensors of {_sizes(state.config)}; read the text again")
        if not all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in state.tensors):
            raise StateError("the saved state has NaN or infinite values, or is not float32; read the text again")
        return state


def _sizes(config: ModelConfig) -> str:
    return f"RWKV-{config.version}, {config.n_layer} layers, n_embd {config.n_embd}, {config.n_head} heads of {config.head_size}"


def check_state(state: State, config: ModelConfig) -> None:
    """Raise StateError unless `state` fits a model of these sizes."""
    if (state.config.version, state.config.n_layer, state.config.state_shapes) != (
        config.version,
        config.n_layer,
        config.state_shapes,
    ):
        raise StateError(f"a state of {_sizes(state.config)} was given to a model of {_sizes(config)}; start from zero_state()")


def stack(states: Sequence[State]) -> list[Tensor]:
    """One batch: each tensor gains a leading dimension B."""
    return [torch.stack(tensors) for tensors in zip(*(state.tensors for state in states), strict=True)]


def unstack(batch: Sequence[Tensor], config: ModelConfig) -> list[State]:
    """The rows of a batch, each owning its memory."""
    return [State(config, [tensor[row].clone() for tensor in batch]) for row in range(batch[0].shape[0])]
