"""Snapshots of a collection's vectors: files that can be thrown away, because SQL has everything in them.

    faiss/<collection>-<version>.json      manifest: recipe, watermark, size and sha256 of each file, and its own
    faiss/<collection>-<version>.ids       chunk ids, int64 little-endian, ascending
    faiss/<collection>-<version>.vectors   one row of `dim` float16 little-endian per id
    faiss/<collection>-<version>.index     FAISS index over the row numbers, if the search is approximate

Every file is written to a temporary name, fsynced and renamed; the manifest comes last, so a snapshot exists
wholly or not at all. Nothing is believed before its checksum is: FAISS loads an HNSW file with zeroed bytes
in its middle without complaint, and its reader is not made for hostile files.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

FORMAT = 1
_HASH_BLOCK_BYTES = 1 << 22


class DamagedSnapshot(Exception):
    """A snapshot's files are not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot holds. `version` and `max_id` are its watermark: what is newer is replayed from SQL."""

    format: int
    collection: int
    version: int
    max_id: int
    count: int
    dim: int
    recipe: str
    ann: dict[str, Any] | None  # what `indexer.ann` needs to search the .index file
    files: dict[str, dict[str, Any]]  # suffix -> {"bytes", "sha256"}


def write_snapshot(
    directory: Path,
    collection: int,
    version: int,
    recipe: str,
    ids: NDArray[np.int64],
    vectors: Iterable[NDArray[np.float16]],
    dim: int,
    index_bytes: NDArray[np.uint8] | None = None,
    ann: dict[str, Any] | None = None,
) -> Manifest:
    """Write a snapshot and remove older ones. OSError: nothing changed, the older ones are still good."""
    directory.mkdir(exist_ok=True)
    stem = f"{collection}-{version}"
    files = {
        "ids": _write(directory / f"{stem}.ids", [ids.astype("<i8")]),
        "vectors": _write(directory / f"{stem}.vectors", vectors),
    }
    if index_bytes is not None:
        files["index"] = _write(directory / f"{stem}.index", [index_bytes])
    max_id = int(ids[-1]) if len(ids) else 0
    manifest = Manifest(FORMAT, collection, version, max_id, len(ids), dim, recipe, ann, files)
    facts = asdict(manifest)
    text = json.dumps(facts | {"sha256": _sha256(facts)}, indent=1).encode()
    _write(directory / f"{stem}.json", [np.frombuffer(text, np.uint8)])
    remove_snapshots(directory, collection, keep=version)
    return manifest


def _write(path: Path, arrays: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Write, fsync, rename, fsync the directory; size and checksum of what was written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, size = hashlib.sha256(), 0
    try:
        with open(temporary, "wb") as file:
            for array in arrays:
                data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
                file.write(data)
                digest.update(data)
                size += len(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sha256(facts: dict[str, Any]) -> str:
    """The checksum of a manifest without its checksum."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def manifests(directory: Path, collection: int) -> list[Manifest]:
    """The readable manifests of a collection, newest first."""
    found = []
    for path in directory.glob(f"{collection}-*.json"):
        try:
            facts = json.loads(path.read_bytes())
            if facts.pop("sha256") != _sha256(facts):
                raise ValueError("it does not match its checksum")
            manifest = Manifest(**facts)
            if manifest.format == FORMAT and path.name == f"{collection}-{manifest.version}.json":
                found.append(manifest)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("the snapshot manifest %s cannot be read (%s); it is ignored", path, error)
    return sorted(found, key=lambda manifest: manifest.version, reverse=True)


def check(directory: Path, manifest: Manifest) -> None:
    """DamagedSnapshot unless every file has the size and checksum of the manifest."""
    expected = {"ids": 8 * manifest.count, "vectors": 2 * manifest.dim * manifest.count}
    for suffix, facts in manifest.files.items():
        path = _path(directory, manifest, suffix)
        if facts["bytes"] != expected.get(suffix, facts["bytes"]):
            raise DamagedSnapshot(
                f"{path} should have {expected[suffix]} bytes, its manifest says {facts['bytes']}"
            )
        try:
            digest, size = hashlib.sha256(), 0
            with open(path, "rb") as file:
                while block := file.read(_HASH_BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise DamagedSnapshot(f"{path} cannot be read: {error.strerror}") from error
        if (size, digest.hexdigest()) != (facts["bytes"], facts["sha256"]):
            raise DamagedSnapshot(f"{path} does not match its checksum")


def read_ids(directory: Path, manifest: Manifest) -> NDArray[np.int64]:
    return np.fromfile(_path(directory, manifest, "ids"), "<i8").astype(np.int64, copy=False)


def map_vectors(directory: Path, manifest: Manifest) -> NDArray[np.float16]:
    """The (count, dim) vectors, memory-mapped: they take address space, not memory."""
    shape = (manifest.count, manifest.dim)
    if not manifest.count:
        return np.empty(shape, "<f2")  # an empty file cannot be mapped
    return np.memmap(_path(directory, manifest, "vectors"), "<f2", "r", shape=shape)


def read_index(directory: Path, manifest: Manifest) -> NDArray[np.uint8]:
    return np.fromfile(_path(directory, manifest, "index"), np.uint8)


def remove_snapshots(directory: Path, collection: int, keep: int | None = None) -> None:
    """Remove a collection's snapshots but the one of version `keep`; the manifest goes first."""
    stem = f"{collection}-"
    paths = [
        *directory.glob(f"{stem}*.json"),
        *directory.glob(f"{stem}*.*"),
        *directory.glob(f".{stem}*.tmp"),
    ]
    for path in paths:
        if keep is None or not path.name.startswith(f"{stem}{keep}."):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # another process has it open on a system that minds
                log.info("%s could not be removed: %s", path, error)


def _path(directory: Path, manifest: Manifest, suffix: str) -> Path:
    return directory / f"{manifest.collection}-{manifest.version}.{suffix}"
