"""Text to ids and back, and which tokenizer a model gets."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_embed.errors import TokenizerError
from rwkv_embed.tokenizer import ByteTokenizer, FileTokenizer, WorldTokenizer, describe_tokenizer, load_tokenizer

TEXTS = ["", "hello world", "Füße 世界 🌍", "\x00\r\n\t", "नमस्ते สวัสดี"]


@pytest.fixture(scope="module")
def world() -> WorldTokenizer:
    return WorldTokenizer()


def byte_level_file(path: Path, size: int = 269) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["hello world", "hello there"] * 20, trainer)
    tokenizer.save(str(path))
    return path


def test_world_ids_are_the_reference_ones(world: WorldTokenizer) -> None:
    assert world.encode("hello 世界") == [34550, 33, 10267, 14610]
    assert world.encode_batch(["\x00", "hello"]) == [[1], [34550]]
    assert world.encode_batch([]) == []
    assert world.decode([34550, 33, 0, 65535]) == "hello "


@settings(deadline=None)  # the first example loads the vocabulary
@given(st.text())
def test_world_round_trip(text: str) -> None:
    tokenizer = load_tokenizer("world")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text())
def test_byte_round_trip(text: str) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


def test_file_round_trip(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(byte_level_file(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_half_characters_and_lone_surrogates(world: WorldTokenizer) -> None:
    half = ByteTokenizer().encode("é")[:1]
    assert ByteTokenizer().decode(half) == "\ufffd"
    assert world.decode([half[0] + 1]) == "\ufffd"
    assert world.encode("a\ud800b") == world.encode("a\ufffdb")
    assert ByteTokenizer().encode("\udfff") == ByteTokenizer().encode("\ufffd")


@pytest.mark.parametrize("tokenizer", [WorldTokenizer(), ByteTokenizer()], ids=["world", "byte"])
def test_ids_outside_the_vocabulary(tokenizer: WorldTokenizer | ByteTokenizer) -> None:
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=f"token id {token} is outside the vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode([token])


def test_the_tokenizer_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_tokenizer(vocab_size=65536), WorldTokenizer)
    assert isinstance(load_tokenizer(vocab_size=256), ByteTokenizer)
    with pytest.raises(TokenizerError, match="no known tokenizer has 1000 tokens; put its tokenizer.json beside"):
        load_tokenizer(vocab_size=1000)
    with pytest.raises(TokenizerError, match="no tokenizer 'wrold'; give 'world', 'neox', 'byte' or the path"):
        load_tokenizer("wrold")

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    with pytest.raises(TokenizerError, match="GPT-NeoX-20B tokenizer is not on this machine; put its tokenizer.json"):
        load_tokenizer(vocab_size=50277, beside=tmp_path)
    file = byte_level_file(tmp_path / "20B_tokenizer.json")
    assert load_tokenizer(vocab_size=50277, beside=tmp_path / "model.pth").vocab_size == 269
    assert load_tokenizer("neox", vocab_size=50277, beside=tmp_path).vocab_size == 269
    assert load_tokenizer(file, vocab_size=65536).vocab_size == 269
    with pytest.raises(TokenizerError, match="the tokenizer has 269 tokens but the model only 256"):
        load_tokenizer(file, vocab_size=256)
    file.write_text("<html>")
    with pytest.raises(TokenizerError, match="is not a tokenizer.json"):
        load_tokenizer(file)


def test_described_in_words(tmp_path: Path) -> None:
    assert describe_tokenizer(65536) == "RWKV World"
    assert describe_tokenizer(50277) == "GPT-NeoX-20B"
    assert describe_tokenizer(256) == "bytes"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert describe_tokenizer(256, tmp_path) == str(tmp_path / "tokenizer.json")
