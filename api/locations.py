"""Where a store lives when nobody says."""

import os


def default_store() -> str:
    """RWKV_EMBED_STORE, else the user's data folder: the same store from whatever directory one works in."""
    if location := os.environ.get("RWKV_EMBED_STORE"):
        return location
    from platformdirs import user_data_dir

    return user_data_dir("rwkv-embed", appauthor=False)
