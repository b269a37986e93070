"""Any loaded RWKV as a model of EleutherAI's `lm-eval`: LAMBADA, xCOPA, xStoryCloze, xWinograd …

    from lm_eval import simple_evaluate
    from rwkv_embed.lm_eval import RWKVLM
    simple_evaluate(RWKVLM(load_model("model.pth")), tasks=["lambada_openai"])

Every text begins with the document token 0, as in training. Answers to the same context share its state: a
multiple-choice context is read once, however many choices it has.
"""

from collections.abc import Sequence
from typing import Any

from rwkv_embed.errors import MissingDependency
from rwkv_embed.rerank import log_probabilities

try:
    from lm_eval.api.model import LM
except ImportError as error:
    raise MissingDependency("lm-eval is not installed; pip install 'rwkv-embed[eval]'") from error

START = [0]  # "a document begins"
WINDOW = 2048  # tokens given to the model at once; the state carries what is longer
MAX_NEW_TOKENS = 256  # of generate_until, when the task does not say


class RWKVLM(LM):
    """`model` is what `load_model` returns. Requests are lm-eval's `Instance`s: `args` hold the texts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability; is it the greedy one?"""
        results = []
        last_context, prefix, state = None, 0, None
        for context, continuation in (request.args for request in requests):
            tokens, count = self._split(context, continuation)
            if (context, len(tokens) - count) != (last_context, prefix):
                last_context, prefix = context, len(tokens) - count
                # All but the last context token: that one's logits belong to the continuation.
                state = self._read(tokens[: prefix - 1])
            results.append(self._score(tokens[prefix - 1 :], state)[:2])
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """For each (text,): log-probability of all of it. No sliding window: the state remembers."""
        results = []
        for (text,) in (request.args for request in requests):
            tokens, state, total = START + self._model.tokenizer.encode(text), None, 0.0
            for start in range(0, len(tokens) - 1, WINDOW):
                part, _, state = self._score(tokens[start : start + WINDOW + 1], state)
                total += part
            results.append(total)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each (context, options): greedy text up to the first of `until`, which is left out."""
        return [self._generate(*request.args) for request in requests]

    def _split(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Tokens of both, and how many are the continuation's. White space goes with the continuation."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before = START + self._model.tokenizer.encode(stripped)
        tokens = self._model.tokenizer.encode(continuation)
        return before + tokens, len(tokens)

    def _read(self, tokens: list[int], state: Any = None) -> Any:
        for start in range(0, len(tokens), WINDOW):
            _, state = self._model.forward(tokens[start : start + WINDOW], state)
        return state

    def _score(self, tokens: list[int], state: Any) -> tuple[float, bool, Any]:
        """Log-probability of all tokens but the first; is each the likeliest; the state before the last."""
        if len(tokens) < 2:
            return 0.0, True, state
        logits, state = self._model.forward(tokens[:-1], state, full_output=True)
        greedy = logits.argmax(dim=-1).tolist() == tokens[1:]
        return float(log_probabilities(logits, tokens[1:]).sum()), greedy, state

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise ValueError("this adapter generates greedily; the task asks for do_sample, set it to false")
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else until
        *before, token = START + self._model.tokenizer.encode(context)
        state = self._read(before)
        new: list[int] = []
        for _ in range(options.get("max_gen_toks", MAX_NEW_TOKENS)):
            logits, state = self._model.forward([token], state)
            token = int(logits.argmax())
            if token == START[0]:
                break
            new.append(token)
            text = self._model.tokenizer.decode(new)
            stops = [text.find(stop) for stop in until if stop and stop in text]
            if stops:
                return str(text[: min(stops)])
        return str(self._model.tokenizer.decode(new))
