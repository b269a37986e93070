"""The CPU engine: RWKV-7 at the speed of its matrix products, without importing torch."""

from rwkv_embed.ops.fast.model import FastRWKV7, State

__all__ = ["FastRWKV7", "State"]
