"""The rwkv generator with a real, random RWKV-7: cached states change the cost, never the text."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexer.answers.generators.rwkv import END_OF_TEXT, READ_TOKENS, RWKVGenerator, StateCache, _chain
from indexer.answers.prompts import WORLD, Template, completion_segments
from indexer.answers.words import SILENCE
from indexer.errors import GeneratorError
from indexer.types import Message
from rwkv_embed import load_model
from rwkv_embed.generate import Sampling, generate
from tests.index.answering import request
from tests.model.checkpoints import Shape, save, weights

SHAPE = Shape(n_layer=2, n_head=2, head_size=16, vocab_size=256, n_ffn=64)
QUESTION = "Who wrote the old song about the river?"
FIRST, SECOND, THIRD = "Ann wrote the song.", "Bob wrote the book.", "Cyd painted the wall."


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory):
    return save(tmp_path_factory.mktemp("rwkv") / "model.pth", weights("7", SHAPE))


@pytest.fixture(scope="module")
def model(path):
    return load_model(path, tokenizer="byte")


class Counting:
    """The model, and how many tokens it was asked to read."""

    def __init__(self, model) -> None:
        self._model, self.read = model, 0
        self.tokenizer, self.config = model.tokenizer, model.config

    def hidden(self, batch, states=None, **options):
        self.read += sum(map(len, batch))
        return self._model.hidden(batch, states, **options)

    def forward(self, tokens, state=None, **options):
        self.read += len(tokens)
        return self._model.forward(tokens, state, **options)


def make(model, **options) -> tuple[RWKVGenerator, Counting]:
    counting = Counting(model)
    settings = {"max_tokens": 12, "template": Template(stop=("\n\nUser:",)), **options}
    return RWKVGenerator(counting, name="rwkv:tiny", fingerprint="tiny", **settings), counting


def cost(generator: RWKVGenerator, counting: Counting, *texts: str, question: str = QUESTION) -> int:
    counting.read = 0
    list(generator.generate(request(question, *texts)))
    return counting.read


def test_the_text_is_that_of_reading_the_whole_prompt_at_once(model) -> None:
    generator, _ = make(model)
    asked = request(QUESTION, FIRST, SECOND)
    cold = "".join(generator.generate(asked))
    cached = "".join(generator.generate(asked))
    prompt = "".join(completion_segments(WORLD, SILENCE["en"], asked.passages, (), QUESTION))
    tokens = [END_OF_TEXT, *model.tokenizer.encode(prompt)]
    options = Sampling(max_tokens=12, temperature=0.0, stop=("\n\nUser:",))
    assert cold == cached == "".join(generate(model, tokens, options=options)).lstrip() != ""


def test_known_passages_cost_the_question_and_the_answer(model) -> None:
    generator, counting = make(model)
    rules, first, second, tail = completion_segments(
        WORLD, SILENCE["en"], request(QUESTION, FIRST, SECOND).passages, (), QUESTION
    )
    sizes = [len(model.tokenizer.encode(part)) for part in (rules, first, second, tail)]
    answer = cost(generator, counting, FIRST, SECOND) - 1 - sum(sizes)  # 1: the end of text before everything
    assert 1 <= answer <= 12
    assert cost(generator, counting, FIRST, SECOND) == sizes[3] + answer


def test_a_prefix_of_the_passages_is_reused_and_no_other_part(model) -> None:
    generator, counting = make(model, max_tokens=0)
    everything = cost(generator, counting, FIRST, SECOND)
    only_second = len(model.tokenizer.encode(f'<passage n="2" source="Title 2">\n{THIRD}\n</passage>\n'))
    question = cost(generator, counting, FIRST, SECOND)
    assert cost(generator, counting, FIRST, THIRD) == only_second + question
    rules = 1 + len(model.tokenizer.encode(completion_segments(WORLD, "", (), (), "")[0]))
    assert cost(generator, counting, SECOND, FIRST) == everything - rules  # another order is another state


def test_the_question_and_the_history_do_not_enter_the_cache(model) -> None:
    generator, counting = make(model, max_tokens=0)
    cost(generator, counting, FIRST)
    kept = len(generator.cache)
    assert kept == 2  # after the rules, after the passage
    cost(generator, counting, FIRST, question="Wer hat das alte Lied über den Fluss geschrieben?")
    assert len(generator.cache) == kept


def test_a_prefix_that_is_used_outlives_one_that_is_not(model) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.zero_state().tensors)
    generator, counting = make(model, max_tokens=0, cache=StateCache(3 * size))
    for text in (FIRST, SECOND, THIRD, FIRST):
        cost(generator, counting, text)
        assert generator.cache.bytes <= 3 * size
    assert cost(generator, counting, FIRST) < cost(generator, counting, SECOND)


def test_reading_can_be_stopped_between_pieces(model) -> None:
    generator, counting = make(model)
    pieces = generator.generate(request(QUESTION, FIRST * 200))
    assert next(pieces) == ""
    pieces.close()  # type: ignore[attr-defined]
    assert counting.read <= 256


def test_a_long_conversation_is_read_in_pieces_too(model) -> None:
    generator, counting = make(model)
    turns = [Message("user", FIRST * 100), Message("assistant", FIRST * 100)]
    read = [0]
    for piece in generator.generate(request(QUESTION, FIRST, history=turns)):
        read.append(counting.read)
        if piece:
            break
    assert read[-1] > 3000
    assert max(after - before for before, after in pairwise(read)) <= READ_TOKENS + 1


def test_writing_can_be_stopped_after_a_token(model) -> None:
    generator, counting = make(model, max_tokens=1000)
    pieces = generator.generate(request(QUESTION, FIRST))
    while not next(pieces):
        pass
    before = counting.read
    pieces.close()  # type: ignore[attr-defined]
    assert counting.read == before


def test_a_state_is_a_value(model) -> None:
    generator, _ = make(model)
    asked = request(QUESTION, FIRST)
    list(generator.generate(asked))
    keys = list(generator.cache._states)
    copies = [[tensor.clone() for tensor in generator.cache._states[key][0].tensors] for key in keys]
    list(generator.generate(request("Another question?", FIRST)))
    for key, copy in zip(keys, copies, strict=True):
        assert all(map(torch.equal, generator.cache._states[key][0].tensors, copy))


def test_keys_chain_the_model_and_every_segment_before() -> None:
    assert _chain("m", ["a", "b"])[0] == _chain("m", ["a", "c"])[0]
    assert _chain("m", ["a", "b"])[1] != _chain("m", ["b", "b"])[1]
    assert _chain("m", ["a"]) != _chain("n", ["a"])
    assert _chain("m", ["ab", "c"])[1] != _chain("m", ["a", "bc"])[1]


class FakeState:
    def __init__(self, size: int) -> None:
        self.tensors = [torch.zeros(size, dtype=torch.uint8)]


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 12)), max_size=30))
def test_the_cache_is_an_lru_bounded_by_bytes(steps: list[tuple[str, int]]) -> None:
    cache, expected = StateCache(20), {}
    for key, size in steps:
        if size == 0:  # a look-up
            assert (cache.get(key) is not None) == (key in expected)
            if key in expected:
                expected[key] = expected.pop(key)
            continue
        cache.put(key, FakeState(size))
        expected.pop(key, None)
        expected[key] = size
        while sum(expected.values()) > 20:
            expected.pop(next(iter(expected)))
        assert (len(cache), cache.bytes) == (len(expected), sum(expected.values()))


def test_a_state_larger_than_the_cache_is_not_kept() -> None:
    cache = StateCache(5)
    cache.put("a", FakeState(4))
    cache.put("b", FakeState(6))
    assert cache.get("a") is not None and cache.get("b") is None


def test_a_checkpoint_is_loaded_by_path(path) -> None:
    generator = RWKVGenerator.load(path, max_tokens=3)
    assert generator.name == f"rwkv:{path}"
    assert isinstance("".join(generator.generate(request(QUESTION, FIRST))), str)


def test_a_g1_checkpoint_gets_its_template(tmp_path) -> None:
    path = save(tmp_path / "rwkv7-g1a-tiny.pth", weights("7", SHAPE))
    assert RWKVGenerator.load(path)._template.answer == "Assistant: <think>\n</think>"
    assert RWKVGenerator.load(path, template="world")._template == WORLD


def test_an_embedder_is_refused(path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    import rwkv_embed

    model = load_model(path)
    model.config = replace(model.config, kind="embedder")
    monkeypatch.setattr(rwkv_embed, "load_model", lambda path: model, raising=False)
    with pytest.raises(GeneratorError, match="is an RWKV embedder; answers need a language model"):
        RWKVGenerator.load(path)
