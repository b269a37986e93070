"""A store in one file: a zip of the database, copied while it is in use, and a manifest with its checksum.

    manifest.json   {"format", "schema", "bytes", "sha256", "created_at", "collections": {name: chunks}}
    store.sqlite3   SQLite's online backup of the database: one moment, whatever writers do meanwhile

Snapshots of vectors are left out: they are rebuilt. Restoring checks everything before the directory appears.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from indexer.db.engine import SCHEMA_VERSION
from indexer.errors import StoreError
from indexer.snapshots import sync_directory

if TYPE_CHECKING:
    from indexer.store import Store

FORMAT = "rwkv-embed backup 1"
DATABASE = "store.sqlite3"
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20


def backup(store: "Store", path: Path) -> dict[str, Any]:
    """Write a backup to a new file and return its manifest. Neither readers nor writers wait."""
    if store.engine.dialect.name != "sqlite":
        raise StoreError(
            f"{store.name} is a PostgreSQL database; back it up with pg_dump, or one collection with "
            "`rwkv-embed export`"
        )
    if path.exists():
        raise StoreError(f"{path} exists; give another name, a backup never overwrites")
    if not path.parent.is_dir():
        raise StoreError(f"there is no directory {path.parent}; create it or give another path")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            copy, archive = Path(folder) / DATABASE, Path(folder) / "archive.zip"
            _copy_database(store, copy)
            manifest = _describe(copy)
            _write_archive(archive, copy, manifest)
            os.replace(archive, path)
            sync_directory(path.parent)
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"the backup {path} cannot be written: {reason}") from error
    return manifest


def _copy_database(store: "Store", copy: Path) -> None:
    source: Any = store.engine.raw_connection()
    try:
        with closing(sqlite3.connect(copy)) as target:
            source.driver_connection.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
    finally:
        source.close()


def _describe(copy: Path) -> dict[str, Any]:
    _check_database(copy)
    with closing(sqlite3.connect(copy)) as database:
        schema = database.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        counts = database.execute(
            "SELECT name, (SELECT count(*) FROM chunks WHERE collection_id = collections.id) FROM collections"
        ).fetchall()
    with open(copy, "rb") as file:
        digest = _digest(file)
    return {
        "format": FORMAT,
        "schema": schema,
        "bytes": copy.stat().st_size,
        "sha256": digest.hexdigest(),
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "collections": dict(counts),
    }


def _digest(file: IO[bytes]) -> Any:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest


def _write_archive(archive: Path, copy: Path, manifest: dict[str, Any]) -> None:
    with open(archive, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
            zipped.writestr(MANIFEST, json.dumps(manifest, indent=1))
            zipped.write(copy, DATABASE)
        file.flush()
        os.fsync(file.fileno())


def restore(file: Path, directory: Path) -> dict[str, Any]:
    """Unpack a backup into a directory that is not there yet (or empty) and return its manifest.

    The checksum, SQLite's own checks and the schema version are verified in a temporary directory first; only
    a sound store is renamed into place. StoreError says what is wrong with the file.
    """
    directory = directory.expanduser().absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StoreError(f"{directory} is not empty; restore into a new directory, nothing is overwritten")
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _read_manifest(archive, file)
            directory.parent.mkdir(parents=True, exist_ok=True)
            with _scratch(directory) as scratch:
                _unpack(archive, manifest, scratch / DATABASE, file)
                _check_database(scratch / DATABASE)
                sync_directory(scratch)
                if directory.exists():
                    directory.rmdir()
                os.rename(scratch, directory)
                sync_directory(directory.parent)
    except (  # RuntimeError: it is encrypted, or packed in a way that is not known here
        zipfile.BadZipFile,
        EOFError,
        RuntimeError,
        zipfile.zlib.error,  # type: ignore[attr-defined]
    ) as error:
        raise StoreError(f"{file} is damaged or not a backup ({error}); nothing was restored") from error
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {error.filename}; nothing was restored") from error
    except OSError as error:
        raise StoreError(f"{file} cannot be restored: {error.strerror or error}") from error
    return manifest


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A temporary directory beside `directory`, gone afterwards unless it was renamed."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_manifest(archive: zipfile.ZipFile, file: Path) -> dict[str, Any]:
    try:
        if archive.getinfo(MANIFEST).file_size > _MAX_MANIFEST_BYTES:
            raise StoreError(f"{file} is not a backup: its manifest is over {_MAX_MANIFEST_BYTES} bytes")
        manifest = json.loads(archive.read(MANIFEST))
        known = manifest["format"] == FORMAT and archive.getinfo(DATABASE).file_size == manifest["bytes"]
        schema = str(manifest["schema"])
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{file} is not a backup of rwkv-embed; nothing was restored") from error
    if not known:
        raise StoreError(f"{file} is damaged or of an unknown format; nothing was restored")
    if schema > SCHEMA_VERSION:
        raise StoreError(
            f"{file} is of a newer version of rwkv-embed (schema {schema}, this one knows {SCHEMA_VERSION}); "
            "upgrade rwkv-embed to restore it"
        )
    return manifest


def _unpack(archive: zipfile.ZipFile, manifest: dict[str, Any], target: Path, file: Path) -> None:
    free = shutil.disk_usage(target.parent).free
    if manifest["bytes"] > free:
        raise StoreError(f"restoring needs {manifest['bytes']:,} bytes, {free:,} are free; make room first")
    digest, size = hashlib.sha256(), 0
    with archive.open(DATABASE) as packed, open(target, "wb") as unpacked:
        while block := packed.read(_BLOCK_BYTES):
            size += len(block)
            if size > manifest["bytes"]:
                break  # it claims to be smaller than it is
            digest.update(block)
            unpacked.write(block)
        unpacked.flush()
        os.fsync(unpacked.fileno())
    if (size, digest.hexdigest()) != (manifest["bytes"], manifest["sha256"]):
        raise StoreError(f"{file} does not match its checksum; nothing was restored")


def _check_database(path: Path) -> None:
    """SQLite's own checks; StoreError with the first thing they find."""
    try:
        with closing(sqlite3.connect(path)) as database:
            (result,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            strays = database.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"the database in the backup is damaged: {error}") from error
    if result != "ok" or strays:
        raise StoreError(f"the database in the backup is damaged: {result if result != 'ok' else strays}")
