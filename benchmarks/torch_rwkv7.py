"""RWKV-7 in plain torch, batched with padding: what one writes first, and what we compare with."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

Tensors = Mapping[str, np.ndarray]


class TorchRWKV7:
    """Hidden state after `ln_out` at each text's last token. Padding is on the right, after that token."""

    def __init__(self, tensors: Tensors) -> None:
        named = {name.removeprefix("rwkv."): tensor for name, tensor in tensors.items()}
        self.z = {name: torch.from_numpy(np.asarray(t, np.float32)) for name, t in named.items()}
        self.n_head, self.head_size = self.z["blocks.0.att.r_k"].shape
        self.n_layer = 1 + max(int(name.split(".")[1]) for name in self.z if name.startswith("blocks."))

    @torch.no_grad()
    def hidden(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        """(B, C) float32."""
        lengths = torch.tensor([len(text) for text in batch])
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in batch], batch_first=True)
        x = self._norm(self.z["emb.weight"][tokens], "blocks.0.ln0")
        v_first = None
        for i in range(self.n_layer):
            mixed, v_first = self._time_mixing(i, self._norm(x, f"blocks.{i}.ln1"), v_first)
            x = x + mixed
            x = x + self._channel_mixing(i, self._norm(x, f"blocks.{i}.ln2"))
        last = x[torch.arange(len(batch)), lengths - 1]
        return self._norm(last, "ln_out").numpy()

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.z[name + ".weight"], self.z[name + ".bias"])

    def _time_mixing(
        self, i: int, x: torch.Tensor, v_first: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        B, T, C = x.shape
        heads = (B, T, self.n_head, self.head_size)
        p = {
            name.rsplit(f"blocks.{i}.att.", 1)[-1]: t
            for name, t in self.z.items()
            if f"blocks.{i}.att." in name
        }
        xx = F.pad(x, (0, 0, 1, -1)) - x
        xr, xw, xk, xv, xa, xg = (x + xx * p["x_" + name].reshape(-1) for name in "rwkvag")
        r, k, v = xr @ p["receptance.weight"].T, xk @ p["key.weight"].T, xv @ p["value.weight"].T
        w = torch.exp(-0.606531 * torch.sigmoid(p["w0"].reshape(-1) + torch.tanh(xw @ p["w1"]) @ p["w2"]))
        a = torch.sigmoid(p["a0"].reshape(-1) + xa @ p["a1"] @ p["a2"])
        g = torch.sigmoid(xg @ p["g1"]) @ p["g2"]
        kk = F.normalize((k * p["k_k"].reshape(-1)).view(heads), dim=-1)
        k = k * (1 + (a - 1) * p["k_a"].reshape(-1))
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(p["v0"].reshape(-1) + xv @ p["v1"] @ p["v2"])
        r, w, k, v, a = (t.view(heads) for t in (r, w, k, v, a))
        y = self._recur(r, w, k, v, kk, kk * a)
        y = F.group_norm(y.reshape(B * T, C), self.n_head, p["ln_x.weight"], p["ln_x.bias"], 64e-5).view(
            heads
        )
        y = y + (r * k * p["r_k"]).sum(-1, keepdim=True) * v
        return (y.reshape(B, T, C) * g) @ p["output.weight"].T, v_first

    def _recur(
        self,
        r: torch.Tensor,
        w: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kk: torch.Tensor,
        b: torch.Tensor,
    ) -> torch.Tensor:
        B, T, H, N = r.shape
        state = torch.zeros(B, H, N, N)
        out = torch.empty(B, T, H, N)
        for t in range(T):
            removed = state @ kk[:, t, :, :, None]
            state = (
                state * w[:, t, :, None] - removed * b[:, t, :, None] + v[:, t, :, :, None] * k[:, t, :, None]
            )
            out[:, t] = (state @ r[:, t, :, :, None])[..., 0]
        return out

    def _channel_mixing(self, i: int, x: torch.Tensor) -> torch.Tensor:
        xk = x + (F.pad(x, (0, 0, 1, -1)) - x) * self.z[f"blocks.{i}.ffn.x_k"].reshape(-1)
        return (
            torch.relu(xk @ self.z[f"blocks.{i}.ffn.key.weight"].T) ** 2
            @ self.z[f"blocks.{i}.ffn.value.weight"].T
        )
