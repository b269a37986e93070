"""Post-processing for raw language models, fitted on a collection's own text.

The states of a language model lie in a narrow cone and say more about style than about meaning (RWKV-LM issue
24). Two linear repairs, both `normalise((v - mean) @ matrix)`:

    whiten        every direction gets the same variance; may also shorten the vector (Su et al. 2021,
                  arXiv:2103.15316)
    remove_top    the few directions that all texts share are taken out (Mu & Viswanath 2018,
                  arXiv:1702.01417)

The fit is saved as safetensors (`mean` (d,), `matrix` (d, dim)) and is part of an embedder's fingerprint.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.errors import CheckpointError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Whitening:
    """A fitted linear map. mean (d,), matrix (d, dim)."""

    mean: Floats
    matrix: Floats

    @classmethod
    def whiten(cls, vectors: Floats, dim: int | None = None) -> "Whitening":
        """Fit on `vectors` (n, d). Keeps the `dim` strongest directions (all that the sample spans by
        default).

        Components come strongest first, so a whitened vector may be truncated like a Matryoshka one.
        """
        mean, axes, variance = _principal_axes(vectors)
        spanned = int((variance > variance[0] * 1e-6).sum())
        kept = min(dim or spanned, spanned)
        return cls(mean, (axes[:kept].T / np.sqrt(variance[:kept])).astype(np.float32))

    @classmethod
    def remove_top(cls, vectors: Floats, count: int | None = None) -> "Whitening":
        """Fit on (n, d): subtract the mean and the `count` strongest directions (d / 100 by default)."""
        mean, axes, _ = _principal_axes(vectors)
        count = max(1, round(len(mean) / 100)) if count is None else count
        top = axes[:count]
        return cls(mean, (np.eye(len(mean)) - top.T @ top).astype(np.float32))

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.mean.tobytes() + self.matrix.tobytes()).hexdigest()

    def __call__(self, vectors: Floats) -> Floats:
        """(n, d) -> (n, dim), not normalised."""
        if vectors.shape[-1] != len(self.mean):
            raise ValueError(
                f"the whitening was fitted on {len(self.mean)}-d vectors, the model gives "
                f"{vectors.shape[-1]}-d; fit it again with this model and pooling"
            )
        return cast(Floats, (vectors - self.mean) @ self.matrix)

    def save(self, path: str | Path) -> None:
        from safetensors.numpy import save

        Path(path).write_bytes(save({"mean": self.mean, "matrix": np.ascontiguousarray(self.matrix)}))

    @classmethod
    def load(cls, path: str | Path) -> "Whitening":
        """Read what `save` wrote. Raises CheckpointError when the file holds no such fit, or one with NaN."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
            mean, matrix = tensors["mean"], tensors["matrix"]
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path} holds no whitening ({error}); fit and save it again") from error
        if mean.ndim != 1 or matrix.ndim != 2 or len(mean) != len(matrix):
            raise CheckpointError(
                f"{path} holds no whitening (mean has shape {mean.shape}, matrix {matrix.shape}, expected (d,) "
                "and (d, dim)); fit and save it again"
            )
        if not (np.isfinite(mean).all() and np.isfinite(matrix).all()):
            raise CheckpointError(f"the whitening in {path} has NaN or infinite values; fit and save it again")
        return cls(mean, matrix)


def _principal_axes(vectors: Floats) -> tuple[Floats, NDArray[np.float64], NDArray[np.float64]]:
    """Mean (d,), axes (k, d) strongest first, variance (k,)."""
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(f"fitting needs at least two vectors, got an array of shape {vectors.shape}")
    mean = vectors.mean(axis=0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(vectors - mean, full_matrices=False)
    return mean.astype(np.float32), axes, singular**2 / len(vectors)
