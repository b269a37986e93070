"""Tiny random models, made once per test run. A model is never changed by reading, so tests share it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import checkpoints as ck

from rwkv_embed.config import Version
from rwkv_embed.models import load_model
from rwkv_embed.models.base import Model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def model_of(folder: Path) -> Callable[[Version], Model]:
    """The first test model of a generation: 2 layers, 2 heads of 16, 97 tokens."""
    models: dict[str, Model] = {}

    def get(version: Version) -> Model:
        if version not in models:
            path = ck.save(folder / f"{version}.safetensors", ck.weights(version, ck.SHAPES[0]))
            models[version] = load_model(path)
        return models[version]

    return get
