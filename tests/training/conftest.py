"""A small corpus."""

import json
import sys
from pathlib import Path

import pytest
import zstandard

sys.path.insert(0, str(Path(__file__).parent))

from samples import letters

from rwkv_embed.training import contrast


@pytest.fixture
def rows(tmp_path: Path) -> contrast.Rows:
    """A corpus of eight numbered sentences in three languages, and two questions on one passage."""
    for source in (*contrast.TRANSLATIONS, *contrast.QUESTIONS):
        with zstandard.open(tmp_path / f"{source}.jsonl.zst", "wt", encoding="utf-8") as file:
            if source == "par_newstest":
                for i in range(8):
                    texts = {language: " ".join([f"{language}{i}"] * 6) for language in ("de", "en", "sw")}
                    file.write(json.dumps(texts) + "\n")
            if source == "pair_nativeqa":
                for question in ("wer?", "was?"):
                    file.write(json.dumps({"l": "de", "q": question, "p": "Das ist die Passage."}) + "\n")
    return contrast.read_rows(tmp_path, letters(tmp_path))
