"""BERT (Devlin et al., 2019) in torch, as far as teachers need it: the mean of a text's last hidden states.

A tool of training runs, never imported by the product.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rwkv_embed.models.weights import MULTIPLIES_BFLOAT16


class Bert:
    """`weights` are emb.word, emb.pos, emb.type, and of layer i l{i}.q, .k, .v, .ao (what attention puts out), .fi
    and .fo (feed forward), each with .w and .b, as have the norms behind them: emb.ln, l{i}.aln and l{i}.oln."""

    def __init__(
        self, weights: dict[str, torch.Tensor], n_layer: int, n_head: int, eps: float, pad: int
    ) -> None:
        self.n_layer, self.n_head, self.eps, self.pad = n_layer, n_head, eps, pad
        # Twice as fast where the processor multiplies it, cosine 0.99999 to float32; int8 had 0.979.
        dtype = torch.bfloat16 if MULTIPLIES_BFLOAT16 else torch.float32
        self.weights = {name: values.to(dtype) for name, values in weights.items()}
        self.width = self.weights["emb.word"].shape[1]

    @torch.no_grad()
    def encode_tokens(self, tokens: list[list[int]], batch_tokens: int = 4096) -> NDArray[np.float32]:
        """(n, width), L2-normalised."""
        vectors = np.zeros((len(tokens), self.width), np.float32)
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        while order:
            rows = order[: max(1, batch_tokens // len(tokens[order[0]]))]
            order = order[len(rows) :]
            vectors[rows] = self._forward([tokens[i] for i in rows]).numpy()
        return vectors

    def _forward(self, batch: list[list[int]]) -> torch.Tensor:
        w, B, T = self.weights, len(batch), max(map(len, batch))
        ids, mask = torch.full((B, T), self.pad), torch.zeros(B, T, dtype=torch.bool)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), True

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.layer_norm(x, (self.width,), w[name + ".w"], w[name + ".b"], self.eps)

        def linear(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.linear(x, w[name + ".w"], w[name + ".b"])

        h = norm(F.embedding(ids, w["emb.word"]) + w["emb.pos"][:T] + w["emb.type"][0], "emb.ln")
        for i in range(self.n_layer):
            q, k, v = (linear(h, f"l{i}.{n}").view(B, T, self.n_head, -1).transpose(1, 2) for n in "qkv")
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
            h = norm(h + linear(mixed.transpose(1, 2).reshape(B, T, -1), f"l{i}.ao"), f"l{i}.aln")
            h = norm(h + linear(F.gelu(linear(h, f"l{i}.fi")), f"l{i}.fo"), f"l{i}.oln")
        weight = mask[..., None].float()
        return F.normalize((h.float() * weight).sum(1) / weight.sum(1), dim=-1)
