"""Text from a language model: sampling, streaming, stop strings, from any state; and how likely a text is.

    for piece in generate(model, "The Eiffel Tower is in", options=Sampling(max_tokens=40, seed=1)):
        print(piece, end="")

A stored state replaces everything read so far: `generate(model, "\\nAnswer:", state)` reads only these words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rwkv_embed.models.base import Model, Tokens
from rwkv_embed.state import State

# RWKV marks the end of a text with token 0 in every vocabulary it was trained on.
END_OF_TEXT = 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature 0 takes the likeliest token. top_k 0 and top_p 1 keep every token. The penalties lower the logits
    of tokens already generated: presence once, frequency per occurrence. A seed makes the text repeatable.
    Generation ends before a stop string, at one of `end_tokens`, or after max_tokens.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    end_tokens: tuple[int, ...] = (END_OF_TEXT,)

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value}, expected {expected}"
            for name, value, ok, expected in (
                ("max_tokens", self.max_tokens, self.max_tokens >= 0, "0 or more"),
                ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
                ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1"),
                ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
                ("stop", self.stop, all(self.stop), "no empty string"),
            )
            if not ok
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


def generate(
    model: Model, prompt: str | Tokens, state: State | None = None, options: Sampling | None = None
) -> Iterator[str]:
    """Pieces of text as they are generated, never half a character and never part of a stop string."""
    options = options or Sampling()
    writer = _Writer(model, options, index=0)
    logits, state = model.forward(_prompt_tokens(model, prompt), state)
    while (token := writer.choose(logits)) is not None:
        if piece := writer.add(token):
            yield piece
        if writer.finished:
            return
        logits, state = model.forward([token], state)
    if piece := writer.rest():
        yield piece


def generate_batch(
    model: Model,
    prompts: Sequence[str | Tokens],
    states: Sequence[State] | None = None,
    options: Sampling | None = None,
) -> list[str]:
    """Whole texts for several prompts of any lengths, one matrix product per step for all of them.

    Prompt i draws from the seed `seed + i`, so a text does not depend on what else is in the batch.
    """
    options = options or Sampling()
    writers = [_Writer(model, options, index) for index in range(len(prompts))]
    texts = [""] * len(prompts)
    logits, states = _batch_logits(model, [_prompt_tokens(model, prompt) for prompt in prompts], states)
    active = list(range(len(prompts)))
    while active:
        chosen: list[tuple[int, int, State]] = []
        for index, row, state in zip(active, logits, states, strict=True):
            token = writers[index].choose(row)
            texts[index] += writers[index].rest() if token is None else writers[index].add(token)
            if token is not None and not writers[index].finished:
                chosen.append((index, token, state))
        active = [index for index, _, _ in chosen]
        logits, states = _batch_logits(model, [[token] for _, token, _ in chosen], [state for _, _, state in chosen])
    return texts


def score(model: Model, state: State | None, tokens: Tokens) -> float:
    """Log-likelihood (natural, <= 0) of tokens[1:], each given `state` and the tokens before it.

    The first token is read but not scored, since a state alone predicts nothing: begin with a line break, or with
    0 (end of text) at the beginning of everything.
    """
    if len(tokens) < 2:
        return 0.0
    logits, _ = model.forward(tokens[:-1], state, full_output=True)
    targets = torch.tensor(list(tokens[1:]))
    return float(torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).double().sum())


@dataclass
class _Writer:
    """One text being written: its random generator, its tokens so far, and what has been handed out."""

    model: Model
    options: Sampling
    index: int
    tokens: list[int] = field(default_factory=list)
    sent: int = 0
    finished: bool = False

    def __post_init__(self) -> None:
        self.generator = torch.Generator()
        if self.options.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.options.seed + self.index)

    def choose(self, logits: Tensor) -> int | None:
        """The next token, or None at the end of the text or of the token budget."""
        if len(self.tokens) >= self.options.max_tokens:
            return None
        token = sample(self._penalised(logits), self.options, self.generator)
        return None if token in self.options.end_tokens else token

    def _penalised(self, logits: Tensor) -> Tensor:
        if not self.tokens or not (self.options.presence_penalty or self.options.frequency_penalty):
            return logits
        seen, counts = torch.tensor(self.tokens).unique(return_counts=True)
        logits = logits.clone()
        logits[seen] -= self.options.presence_penalty + self.options.frequency_penalty * counts
        return logits

    def add(self, token: int) -> str:
        """Take a token; returns the text that is now certain, and sets `finished` at a stop string."""
        self.tokens.append(token)
        text = self.model.tokenizer.decode(self.tokens)
        found = [at for stop in self.options.stop if (at := text.find(stop)) >= 0]
        if found:
            self.finished = True
            return self._send(text[: min(found)])
        return self._send(text[: len(text) - self._uncertain(text)])

    def rest(self) -> str:
        """What was held back when the text ends without a stop string."""
        return self._send(self.model.tokenizer.decode(self.tokens))

    def _send(self, text: str) -> str:
        piece = text[self.sent :]
        self.sent = max(self.sent, len(text))
        return piece

    def _uncertain(self, text: str) -> int:
        """Characters at the end that may yet change: half a character, or the beginning of a stop string."""
        half = len(text) - len(text.rstrip("\ufffd"))
        beginnings = [n for stop in self.options.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return max([half, *beginnings])


def sample(logits: Tensor, options: Sampling, generator: torch.Generator | None = None) -> int:
    """One token drawn from logits (V,): temperature first, then top_k, then top_p."""
    if options.temperature == 0:
        return int(logits.argmax())
    probabilities, tokens = torch.softmax(logits / options.temperature, dim=-1).sort(descending=True)
    if options.top_k:
        probabilities = probabilities[: options.top_k]
    before = probabilities.cumsum(0) - probabilities
    kept = probabilities[before < options.top_p * probabilities.sum()]
    return int(tokens[torch.multinomial(kept, 1, generator=generator)])


def _prompt_tokens(model: Model, prompt: str | Tokens) -> Tokens:
    tokens = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    return tokens if len(tokens) else [END_OF_TEXT]


def _batch_logits(
    model: Model, batch: Sequence[Tokens], states: Sequence[State] | None
) -> tuple[list[Tensor], list[State]]:
    if not batch:
        return [], []
    hidden, new_states = model.hidden(batch, states)
    return [model.logits(row) for row in hidden], new_states
