"""RWKV generations, one a file."""
