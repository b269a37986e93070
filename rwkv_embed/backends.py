"""What an embedder needs of a model, and the two things that provide it.

    FastBackend    the torch-free engine, for RWKV-7 embedding checkpoints: the bundled default
    TorchBackend   `load_model`, for every other generation and packaging

Both speak NumPy: hidden states are float32 arrays, a state is a list of float32 arrays in the order of PyPI's
`rwkv` (see `pooling`). Nothing above this file knows which one is running.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.config import Dtype, ModelConfig
from rwkv_embed.errors import CheckpointError
from rwkv_embed.hub import RANGES, ModelFiles
from rwkv_embed.pooling import Head
from rwkv_embed.sums import DTYPES as SUMS
from rwkv_embed.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from rwkv_embed.checkpoint import Checkpoint

DEFAULT_EOS = 65535  # EmbeddingRWKV's, whose files have no config.json

Floats = NDArray[np.float32]
State = Any  # a value of the back end's own; never changed in place


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model besides its weights.

    `identity` is a hash of weights and tokenizer. `eos` is the token appended to each text of an embedder.
    `sentence_share`, 0 … 1, is what the nearest sentence of a text should count in a search beside the whole text.
    """

    model_id: str
    identity: str
    config: ModelConfig
    eos: int | None = None
    head: Head | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    sentence_share: float = 0.0
    int8_ranges: Path | None = None


class Backend(Protocol):
    """A loaded model."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def hidden(
        self, batch: Sequence[Sequence[int]], states: Sequence[State] | None = None, *, keep: bool = True
    ) -> tuple[Floats, list[State]]:
        """Read token lists of any lengths >= 1. Last hidden states (B, C) and new states; arguments
        untouched.

        Without `keep` the states are not wanted, and are None.
        """
        ...

    def hidden_sequence(
        self, batch: Sequence[Sequence[int]], states: Sequence[State] | None = None
    ) -> tuple[list[Floats], list[State]]:
        """The same with the hidden state of every token: B arrays (T_i, C)."""
        ...

    def arrays(self, state: State) -> list[Floats]:
        """A state as arrays."""
        ...

    def state(self, arrays: Sequence[Floats]) -> State:
        """The inverse of `arrays`. Raises ValueError when number or shapes are not this model's."""
        ...


def open_backend(files: ModelFiles, dtype: Dtype | None, threads: int | None) -> Backend:
    """Load the model that `hub.resolve` found, with the fast engine where it can.

    `dtype` None is each back end's own choice: torch's is float32. Raises CheckpointError for a damaged model, a
    reranker or a config.json that makes no sense, TokenizerError, and ValueError for an unknown `dtype` or
    `threads` below 1.
    """
    from rwkv_embed.checkpoint import open_checkpoint

    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1; leave it out to use every processor")
    checkpoint = open_checkpoint(files.weights)
    if checkpoint.config.kind == "reranker":
        raise CheckpointError(
            f"{files.name} is a reranker: it scores passages; open it with StateReranker.load"
        )
    if runs_fast(files, checkpoint):
        return FastBackend(files, dtype, threads)
    return TorchBackend(files, dtype or "float32", threads)


def runs_fast(files: ModelFiles, checkpoint: "Checkpoint") -> bool:
    """Whether the torch-free engine can run a model."""
    return (
        checkpoint.config.version == "7"
        and checkpoint.config.kind == "embedder"
        and checkpoint.packaging == "safetensors"
        and files.weights.is_file()
        and _is_usual(checkpoint)
        and _is_plain(checkpoint)
    )


def _is_usual(checkpoint: "Checkpoint") -> bool:
    """Whether names, widths and norm constants are those of EmbeddingRWKV: the engine knows no others."""
    config = checkpoint.config
    return (
        checkpoint.tensors["emb.weight"].source.name.startswith(("rwkv.emb.", "emb."))
        and config.n_att == config.n_embd
        and not config.unusual_epsilons
    )


def _is_plain(checkpoint: "Checkpoint") -> bool:
    """Whether nothing is packed but the token table."""
    tensors = {name: entry for name, entry in checkpoint.tensors.items() if name not in SUMS}
    plain = (entry for name, entry in tensors.items() if name != "emb.weight" or not entry.packed)
    return all(entry.dtype in ("F16", "BF16", "F32") for entry in plain)


class FastBackend:
    """`rwkv_embed.ops.fast.FastRWKV7`: NumPy and compiled kernels, no torch; states are arrays."""

    def __init__(self, files: ModelFiles, dtype: Dtype | None, threads: int | None) -> None:
        from rwkv_embed.ops.fast import FastRWKV7
        from rwkv_embed.ops.fast.weights import read_safetensors

        tensors = read_safetensors(files.weights)
        try:
            # Any: what `hidden` returns depends on its flags.
            self._model: Any = FastRWKV7(tensors, dtype=dtype, threads=threads)
            head = Head.from_tensors(tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{files.weights}: {error}") from None
        self.tokenizer: Tokenizer = load_tokenizer(
            files.tokenizer, vocab_size=self._model.config.vocab_size, beside=files.weights
        )
        self.info = _describe(files, self._model.config, head)

    def hidden(
        self, batch: Sequence[Sequence[int]], states: Sequence[State] | None = None, *, keep: bool = True
    ) -> tuple[Floats, list[State]]:
        hidden, after = self._model.hidden(batch, states, return_states=keep)
        return hidden, after or [None] * len(batch)

    def hidden_sequence(
        self, batch: Sequence[Sequence[int]], states: Sequence[State] | None = None
    ) -> tuple[list[Floats], list[State]]:
        return self._model.hidden(batch, states, full_output=True)

    def arrays(self, state: State) -> list[Floats]:
        return list(state)

    def state(self, arrays: Sequence[Floats]) -> State:
        check_shapes(arrays, [array.shape for array in self._model.zero_state()])
        return list(arrays)


class TorchBackend:
    """`rwkv_embed.load_model`: every generation, every packaging."""

    def __init__(self, files: ModelFiles, dtype: Dtype, threads: int | None) -> None:
        import torch

        from rwkv_embed.models import load_model

        if threads is not None:
            torch.set_num_threads(threads)
        # Any: what `hidden` returns depends on its flags.
        self._model: Any = load_model(files.weights, dtype=dtype, tokenizer=files.tokenizer)
        self.tokenizer: Tokenizer = self._model.tokenizer
        head = None
        if self._model.config.kind == "embedder":
            head = Head.from_tensors({name: tensor.numpy() for name, tensor in self._model.heads.items()})
        self.info = _describe(files, self._model.config, head)

    def hidden(
        self, batch: Sequence[Sequence[int]], states: Sequence[State] | None = None, *, keep: bool = True
    ) -> tuple[Floats, list[State]]:
        hidden, after = self._model.hidden(batch, states)
        return hidden.float().numpy(), list(after) if keep else [None] * len(batch)

    def hidden_sequence(
        self, batch: Sequence[Sequence[int]], states: Sequence[State] | None = None
    ) -> tuple[list[Floats], list[State]]:
        hidden, after = self._model.hidden(batch, states, full_output=True)
        return [row.float().numpy() for row in hidden], list(after)

    def arrays(self, state: State) -> list[Floats]:
        return [tensor.float().numpy() for tensor in state.tensors]

    def state(self, arrays: Sequence[Floats]) -> State:
        import torch

        state = self._model.zero_state()
        check_shapes(arrays, [tuple(tensor.shape) for tensor in state.tensors])
        return type(state)(state.config, [torch.from_numpy(array.copy()) for array in arrays])


def check_shapes(arrays: Sequence[Floats], expected: Sequence[tuple[int, ...]]) -> None:
    """Raise ValueError unless the arrays are the ones a state of this model has."""
    shapes = [array.shape for array in arrays]
    if shapes != list(expected):
        raise ValueError(f"the state has arrays of shapes {shapes}, this model needs {list(expected)}")


def _describe(files: ModelFiles, config: ModelConfig, head: Head | None) -> ModelInfo:
    ranges = files.folder / RANGES
    return ModelInfo(
        model_id=files.name,
        identity=files.identity,
        config=config,
        eos=_eos(files, config),
        head=head,
        prompts=_prompts(files),
        sentence_share=_sentence_share(files),
        int8_ranges=ranges if ranges.is_file() else None,
    )


def _eos(files: ModelFiles, config: ModelConfig) -> int | None:
    """Of embedders only: a language model's `eos_token_id` is for generation, it was not trained to end a text."""
    if config.kind != "embedder":
        return None
    eos = files.settings.get("eos_token_id", DEFAULT_EOS)
    if type(eos) is not int or not 0 <= eos < config.vocab_size:
        seen = f"is {eos!r}" if "eos_token_id" in files.settings else "is missing"
        raise CheckpointError(
            f"eos_token_id in {files.folder / 'config.json'} {seen}; expected the token that ends a text, a "
            f"number from 0 to {config.vocab_size - 1}"
        )
    return eos


def _prompts(files: ModelFiles) -> dict[str, str]:
    prompts = files.settings.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise CheckpointError(
            f"prompts in {files.folder / 'config.json'} is {prompts!r}; expected texts by name, such as "
            '{"query": "query: ", "document": ""}'
        )
    return dict(prompts)


def _sentence_share(files: ModelFiles) -> float:
    share = files.settings.get("sentence_share", 0.0)
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise CheckpointError(
            f"sentence_share in {files.folder / 'config.json'} is {share!r}; expected a number from 0 to 1"
        )
    return float(share)
