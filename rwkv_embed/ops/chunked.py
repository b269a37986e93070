"""The recurrences of reference.py in time-parallel form: same arguments, same results, matrix products.

RWKV-5 to 7 cut the tokens into chunks. Inside a chunk every token meets every earlier token at once; between
chunks only the state is handed on. RWKV-4 has a state per channel, so there is no matrix product to gain.

RWKV-7 bounds its decay (log w > -0.607), so a chunk of 16 tokens may divide by its cumulated decay, at
least exp(-9.7).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16


def wkv4(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: tuple[Tensor, Tensor, Tensor], lengths: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """As reference.wkv4, with everything but two cheap recurrences taken out of the loop over time.

    The running peak pp must be rounded as the reference rounds it, since aa and bb are scaled by it. Given
    the peaks, aa and bb are one first-order linear recurrence whose factors are known for all tokens at once.
    """
    aa, bb, pp = state
    peaks = [pp]
    for t in range(k.shape[1]):
        peaks.append(torch.maximum(peaks[-1] + w, k[:, t]))
    p = torch.stack(peaks, dim=1)  # (B, T + 1, A): before the first token, and after each
    past, now = torch.exp(p[:, :-1] + w - p[:, 1:]), torch.exp(k - p[:, 1:])

    sums = [torch.stack([aa, bb])]
    added = torch.stack([now * v, now])  # (2, B, T, A)
    for t in range(k.shape[1]):
        sums.append(torch.addcmul(added[:, :, t], past[:, t], sums[-1]))
    a, b = torch.stack(sums, dim=2)

    peak = torch.maximum(p[:, :-1], u + k)
    past, now = torch.exp(p[:, :-1] - peak), torch.exp(u + k - peak)
    y = (past * a[:, :-1] + now * v) / (past * b[:, :-1] + now)
    rows = torch.arange(len(lengths))
    return y, (a[rows, lengths], b[rows, lengths], p[rows, lengths])


def wkv6(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As reference.wkv6.

    Decays between two tokens are built up as products, never as quotients or differences of logarithms: a
    channel may forget everything at one token and nothing at the next, and both must stay exact. The products and
    the state between chunks are float64: where the decay is constant its rounding errors all point the same way.
    """
    length = r.shape[1]
    r, k, v = (_to_chunks(x) for x in (r, k, v))  # (B, H, chunks, CHUNK, N)
    w = _to_chunks(w, padding=1.0).double()

    # 1. Scores of each token t for every earlier token s of its chunk, and for itself with the bonus u.
    #    `decay` row t is the product of w over s < i < t; row CHUNK reaches to the chunk's end, s = -1 from
    #    its start.
    scores = r.new_zeros(*r.shape[:-1], CHUNK)
    scores.diagonal(dim1=-2, dim2=-1).copy_((r * u[:, None, None] * k).sum(-1))
    decay = w.new_ones(*r.shape[:-2], CHUNK + 1, r.shape[-1])
    to_end = torch.empty_like(k)
    for s in range(CHUNK - 1, -1, -1):
        decay[..., s + 2 :, :] *= w[..., s + 1 : s + 2, :]
        to_end[..., s, :] = decay[..., CHUNK, :]
        later = slice(s + 1, CHUNK)
        seen = r[..., later, :] * decay[..., later, :].to(r.dtype)
        scores[..., later, s] = (seen * k[..., s : s + 1, :]).sum(-1)
    decay[..., 1:, :] *= w[..., :1, :]
    from_start, kept = decay[..., :CHUNK, :].to(r.dtype), decay[..., CHUNK, :]
    y = scores @ v

    # 2. What each chunk adds to the state, decayed to the chunk's end; then the state at the start of each
    #    chunk, and what every token reads from it.
    added = (k * to_end).transpose(-1, -2) @ v
    starts = []
    for chunk in range(r.shape[2]):
        starts.append(state.to(r.dtype))
        state = kept[:, :, chunk, :, None] * state + added[:, :, chunk]
    y = y + (r * from_start) @ torch.stack(starts, dim=2)
    return _from_chunks(y, length), state.to(r.dtype)


def wkv7(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As reference.wkv7.

    Write u_t = S_{t-1} a_t for what token t removes. Then S_t is the decayed sum of u_s b_s^T + v_s k_s^T,
    and the u of a chunk solve a unit triangular system (the WY form of the delta rule).
    """
    length = r.shape[1]
    r, log_w, k, v, a, b = (_to_chunks(x) for x in (r, log_w, k, v, a, b))
    decay = log_w.cumsum(dim=-2)
    grown = torch.exp(-decay)
    a_in, r_in = a * torch.exp(decay - log_w), r * torch.exp(decay)
    b_out, k_out = b * grown, k * grown

    # 1. Inside the chunk: u = solved_v + solved_a S^T, with S the state at the chunk's start.
    triangle = (a_in @ b_out.transpose(-1, -2)).tril(-1)
    right = torch.cat([(a_in @ k_out.transpose(-1, -2)).tril(-1) @ v, a_in], dim=-1)
    system = torch.eye(CHUNK, dtype=r.dtype) - triangle
    solved_v, solved_a = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split(
        [v.shape[-1], a.shape[-1]], dim=-1
    )

    # 2. Outputs: a part that depends on S, and a part that does not.
    read_b = (r_in @ b_out.transpose(-1, -2)).tril()
    reads_state = r_in + read_b @ solved_a
    y = read_b @ solved_v + (r_in @ k_out.transpose(-1, -2)).tril() @ v

    # 3. The chunk as one step of the state: S <- S step + added.
    end = torch.exp(decay[..., -1:, :])
    b_end, k_end = b_out * end, k_out * end
    step = torch.diag_embed(end.squeeze(-2)) + solved_a.transpose(-1, -2) @ b_end
    added = solved_v.transpose(-1, -2) @ b_end + v.transpose(-1, -2) @ k_end
    starts = []
    for chunk in range(r.shape[2]):
        starts.append(state)
        state = state @ step[:, :, chunk] + added[:, :, chunk]
    y = y + reads_state @ torch.stack(starts, dim=2).transpose(-1, -2)
    return _from_chunks(y, length), state


def _to_chunks(x: Tensor, padding: float = 0.0) -> Tensor:
    """(B, T, H, N) -> (B, H, chunks, CHUNK, N), filled up with what leaves the state alone."""
    batch, length, heads, width = x.shape
    padded = F.pad(x, (0, 0, 0, 0, 0, -length % CHUNK), value=padding)
    return padded.view(batch, -1, CHUNK, heads, width).permute(0, 3, 1, 2, 4).contiguous()


def _from_chunks(x: Tensor, length: int) -> Tensor:
    """(B, H, chunks, size, N) -> (B, T, H, N) without the padding."""
    batch, heads, chunks, size, width = x.shape
    return x.permute(0, 2, 3, 1, 4).reshape(batch, chunks * size, heads, width)[:, :length]
