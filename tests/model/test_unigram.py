"""The unigram table gives the tokens of `tokenizers`, without its trie."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from tokenizers import Tokenizer, models

from rwkv_embed.errors import TokenizerError
from rwkv_embed.hub import DEFAULT
from rwkv_embed.tokenizer import FileTokenizer
from rwkv_embed.training.vocabulary import build_tokenizer
from rwkv_embed.unigram import UnigramTable, cache_table, cached_table

# Few letters with scores that tie, so that the choice among many segmentations is tested.
PIECES = [("a", -2.0), ("b", -2.5), ("ab", -4.0), ("ba", -4.5), ("aba", -6.5), ("▁", -3.0), ("▁a", -4.0)]
PIECES += [("é", -3.0), ("世", -3.0), ("世界", -3.5), ("aé世", -9.0), ("<eos", -1.0)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unigram") / "tokenizer.json"
    build_tokenizer(PIECES).save(str(path))
    cache_table(path)
    return path


@pytest.fixture(scope="module")
def table(file: Path) -> UnigramTable:
    table = cached_table(file)
    assert table is not None
    return table


def encode(table: UnigramTable, text: str) -> list[int]:
    return table.encode_batch([text])[0]


def test_ids_known_by_hand(table: UnigramTable) -> None:
    space = 258 + 5
    assert encode(table, "ba") == [space, 258 + 3]
    assert encode(table, "a") == [258 + 6]
    assert encode(table, "世b\x00") == [space, 258 + 8, 258 + 1, 2]
    assert encode(table, "") == []
    assert encode(table, "ab\u3000\u2028 ba") == [258 + 6, 258 + 1, space, 258 + 3]
    assert table.vocab_size == 258 + len(PIECES)


@pytest.fixture(scope="module")
def exact() -> Tokenizer:
    return build_tokenizer(PIECES)


@settings(deadline=None)
@given(text=st.text(st.sampled_from("abé世界 \n\u2028\u3000▁ﬁ<eos>0xF")) | st.text())
def test_same_tokens_as_tokenizers(table: UnigramTable, exact: Tokenizer, text: str) -> None:
    assert encode(table, text) == exact.encode(text, add_special_tokens=False).ids


def test_same_tokens_with_the_bundled_vocabulary() -> None:
    exact = FileTokenizer(DEFAULT / "tokenizer.json")._rust
    table = cached_table(DEFAULT / "tokenizer.json")
    assert table is not None
    samples = sorted((Path(__file__).parents[2] / "data/sample/udhr").glob("*.md"))
    texts = [file.read_text("utf-8")[200:270] for file in samples]
    assert len(texts) > 50
    assert table.encode_batch(texts) == [
        encoding.ids for encoding in exact.encode_batch(texts, add_special_tokens=False)
    ]


def test_a_damaged_cache_is_made_again(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = FileTokenizer(file).encode("aba")
    (cached,) = (tmp_path / "rwkv-embed" / "tokenizers").iterdir()
    good = cached.read_bytes()
    cached.write_bytes(good[:-100])
    assert cached_table(file) is None
    assert FileTokenizer(file).encode("aba") == expected
    assert cached.read_bytes() == good
    sound = load(good)
    damages: list[tuple[str, Any]] = [
        ("children", {1: sound["children"][1] ^ 1 << 30}),
        ("children", {2: 0}),
        ("children", {0: -1}),
        ("tokens", {3: len(sound["scores"])}),
        ("tokens", {3: -2}),
        ("of_byte", {97: -1}),
        ("of_byte", {97: len(sound["scores"])}),
        ("scores", sound["scores"][:5]),
        ("tokens", sound["tokens"].astype(np.int64)),
        ("bytes", sound["bytes"][:0]),
    ]
    for name, damage in damages:
        array = sound[name].copy() if isinstance(damage, dict) else damage
        for place, value in damage.items() if isinstance(damage, dict) else ():
            array[place] = value
        cached.write_bytes(save(sound | {name: array}))
        assert cached_table(file) is None, (name, damage)
        assert FileTokenizer(file).encode("aba") == expected
        assert cached.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_done_without(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder is needed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert FileTokenizer(file).encode("ab") == [258 + 6, 258 + 1]


def test_other_tokenizers_have_no_table(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for model in (models.BPE(), models.Unigram([("<unk>", 0.0), ("Unigram", -1.0)], 0, False)):
        Tokenizer(model).save(str(path))
        cache_table(path)
        assert cached_table(path) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"model":{', '"model":[{'),
        lambda text: text.replace('["a",-2.0]', "7"),
        lambda text: text.replace('["a",-2.0]', '["a","-2.0"]'),
        lambda text: text.replace('"vocab"', '"words"'),
    ],
)
def test_a_damaged_file_is_refused_by_the_library(tmp_path: Path, damage: Callable[[str], str]) -> None:
    build_tokenizer(PIECES).save(str(tmp_path / "tokenizer.json"), pretty=False)
    whole = (tmp_path / "tokenizer.json").read_text("utf-8")
    assert damage(whole) != whole
    (tmp_path / "tokenizer.json").write_text(damage(whole), "utf-8")
    assert not cache_table(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match=r"is not a tokenizer\.json \(.*\); download it again"):
        FileTokenizer(tmp_path / "tokenizer.json")
