"""Indexing files and folders: walk, skip what is known, load, hand over to the one write path.

Files are visited in sorted order, so a run that died is resumed by running it again: committed files are
recognised by their stamp (size, modification time and the metadata given to the run) without being read. A
table has its stamp when all of its rows are in. The stamp is a hint; whether a document changed is decided by
its content hash. An id is the path relative to the root it was found under.
"""

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from indexer import ingest, jobs, limits
from indexer.db.tables import DocumentRow
from indexer.errors import LoaderError
from indexer.types import Document, IngestReport, Metadata
from indexer.writing import SQL_VARIABLES, Source, batched

if TYPE_CHECKING:
    from indexer.collection import Collection


@dataclass(frozen=True, slots=True)
class File:
    """A file found under `root`. `named` files were given by the user and are refused aloud, not skipped."""

    path: Path
    root: Path
    named: bool

    @property
    def name(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @property
    def uri(self) -> str:
        return self.path.as_uri()


def index_paths(
    collection: "Collection",
    paths: Iterable[str | Path],
    *,
    delete_missing: bool = False,
    metadata: Metadata | None = None,
    progress: ingest.Progress | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    part: tuple[int, int] = (1, 1),
) -> IngestReport:
    """Bring files and folders into the collection; only what is new or changed is embedded.

    `include` and `exclude` are glob patterns on the path relative to its root ("*.md", "drafts/*").
    `part` (k, n) is the k-th of n shares of the files, each for a process of its own, on any machine that sees the
    files under the same path: they embed at the same time, and together index everything once.
    `metadata` is added to every document. With `delete_missing`, documents whose file under the given folders
    is gone are deleted. A file that cannot be read is listed in `report.failed` and keeps what it had in the
    index.
    """
    roots = [Path(os.path.abspath(Path(path).expanduser())) for path in paths]
    for root in roots:
        if not os.path.lexists(root):
            raise LoaderError(str(root), "no such file or directory; nothing was indexed")
    report = IngestReport()
    walk = _Walk(collection.store.pipeline.supported, include, exclude, part, report)
    total = sum(1 for _ in walk.files(roots))
    report.failed.clear()  # of the counting walk
    key = json.dumps([sorted(map(str, roots)), include, exclude, part])
    job = jobs.start(collection.store, collection.id, key, total)
    report.resumed = job.resumed
    run = _Run(collection, report, dict(metadata or {}), job, progress, total)
    try:
        for page in batched(walk.files(roots), SQL_VARIABLES):
            known = run.known(page)
            for file in page:
                run.take(file, known.get(file.uri, []))
        run.flush()
        if delete_missing:
            report.deleted += ingest.delete_documents(collection, _missing(collection, roots, part))
    except BaseException:
        try_to_finish(job, report)
        raise
    job.finish("done", report)
    collection.index.maintain()
    return report


def try_to_finish(job: jobs.Job, report: IngestReport) -> None:
    """Mark a job as failed when that is still possible; if not, its dead owner says the same."""
    from sqlalchemy.exc import SQLAlchemyError

    from indexer.errors import IndexerError

    try:
        job.finish("failed", report)
    except (IndexerError, SQLAlchemyError, OSError):
        return


class _Walk:
    """Finds files: sorted, nothing hidden, no links that leave the root."""

    def __init__(
        self,
        supported: Callable[[Path], bool],
        include: Sequence[str] | None,
        exclude: Sequence[str] | None,
        part: tuple[int, int],
        report: IngestReport,
    ) -> None:
        self._supported, self._include, self._exclude, self._report = supported, include, exclude, report
        self._part = part

    def files(self, roots: Iterable[Path]) -> Iterator[File]:
        seen: set[Path] = set()  # a folder and one inside it may both be given
        for root in roots:
            found = self._folder(root, root) if root.is_dir() else [File(root, root.parent, named=True)]
            for file in found:
                if file.path not in seen and _is_in(file.path, self._part):
                    seen.add(file.path)
                    yield file

    def _folder(self, folder: Path, root: Path) -> Iterator[File]:
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self._fail(folder, f"the folder cannot be read: {error.strerror}")
            return
        for name in names:
            path = folder / name
            if name.startswith("."):
                continue
            try:
                is_link, is_folder = path.is_symlink(), path.is_dir()
                leaves = is_link and not path.resolve().is_relative_to(root.resolve())
            except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
                self._fail(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")
                continue
            if leaves:
                self._fail(path, "a symbolic link that leaves the indexed folder; not followed")
            elif is_folder:
                if not is_link:  # what it points to is visited in its own place
                    yield from self._folder(path, root)
            elif self._supported(path) and self._wanted(path.relative_to(root).as_posix()):
                yield File(path, root, named=False)

    def _wanted(self, name: str) -> bool:
        if self._include and not any(fnmatch(name, pattern) for pattern in self._include):
            return False
        return not (self._exclude and any(fnmatch(name, pattern) for pattern in self._exclude))

    def _fail(self, path: Path, reason: str) -> None:
        self._report.failed.append({"path": str(path), "reason": reason})


class _Run:
    """Collects loaded documents into batches and writes them."""

    def __init__(
        self,
        collection: "Collection",
        report: IngestReport,
        metadata: dict[str, Any],
        job: jobs.Job,
        progress: ingest.Progress | None,
        total: int,
    ) -> None:
        self._collection, self._report, self._metadata, self._job = collection, report, metadata, job
        self._progress, self._total, self._done = progress, total, 0
        given = repr(sorted(metadata.items(), key=str)).encode()
        # no suffix without metadata: most runs have none, and their files keep the stamps they have
        self._suffix = f":{hashlib.sha256(given).hexdigest()[:16]}" if metadata else ""
        self._batch: list[Source] = []
        self._owners: dict[str, str] = {}  # of the ids in the batch
        self._stamps: dict[str, str] = {}  # of the tables in the batch
        self._chars = 0
        self._vanished: list[str] = []

    def take(self, file: File, known: Sequence[Any]) -> None:
        """Load one file into the current batch, unless it is known to be unchanged or cannot be read."""
        try:
            stamp = _stamp(file) + self._suffix
            if known and all(row.source_stamp == stamp for row in known):
                self._report.unchanged += len(known)
            else:
                self._load(file, stamp, known)
        except LoaderError as error:
            self._report.failed.append({"path": str(file.path), "reason": error.reason})
        self._done += 1
        if len(self._batch) >= ingest.BATCH_DOCUMENTS or self._chars >= ingest.BATCH_CHARS:
            self.flush()
        elif not self._batch and self._progress:
            self._progress(self._done, self._total)

    def flush(self) -> None:
        """Write the current batch, which holds whole files; after this it is acknowledged."""
        for batch in batched(self._batch, ingest.BATCH_DOCUMENTS):
            ingest.write_batch(self._collection, batch, self._report, self._job)
        if self._vanished:
            self._report.deleted += ingest.delete_documents(self._collection, self._vanished)
        if self._stamps:  # the last step: a run killed before it reads these tables again
            with self._collection.store.write("marking tables as read") as session:
                for uri, stamp in self._stamps.items():
                    session.execute(
                        update(DocumentRow)
                        .where(DocumentRow.collection_id == self._collection.id, DocumentRow.source == uri)
                        .values(source_stamp=stamp, updated_at=DocumentRow.updated_at)
                    )
        self._batch, self._chars, self._vanished = [], 0, []
        self._owners, self._stamps = {}, {}
        if self._progress:
            self._progress(self._done, self._total)

    def _load(self, file: File, stamp: str, known: Sequence[Any]) -> None:
        documents = self._collection.store.pipeline.load(file.path, file.root)
        self._refuse_foreign(file, documents)
        sources = [
            Source(
                Document(
                    id=document.id,
                    text=document.text,
                    title=document.title,
                    uri=file.uri + document.id.removeprefix(file.name),  # with "#row" for a row of a table
                    language=document.language,
                    metadata={**document.metadata, **self._metadata},
                ),
                file.uri,
                stamp if len(documents) == 1 else None,
            )
            for document in documents
        ]
        good, failed = ingest.checked(sources, self._collection.store.database.takes_nul)
        self._report.failed += failed
        if len(documents) > 1 and not failed:  # else the next run reads the table, and reports, again
            self._stamps[file.uri] = stamp
        self._batch += good.values()
        self._owners |= dict.fromkeys(good, file.uri)
        self._chars += sum(len(source.document.text) for source in good.values())
        self._vanished += {row.external_id for row in known} - {document.id for document in documents}

    def known(self, files: Sequence[File]) -> dict[str, list[Any]]:
        """The documents that came from each of the files, by its URI: one query for many files."""
        found: dict[str, list[Any]] = {}
        with self._collection.session() as session:
            rows = session.execute(
                select(DocumentRow.external_id, DocumentRow.source, DocumentRow.source_stamp).where(
                    DocumentRow.collection_id == self._collection.id,
                    DocumentRow.source.in_([file.uri for file in files]),
                )
            )
            for row in rows:
                found.setdefault(row.source, []).append(row)
        return found

    def _refuse_foreign(self, file: File, documents: Sequence[Document]) -> None:
        """A file may not take the id of a document that came from another file, unless that file is gone."""
        for document in documents:
            if document.id in self._owners:
                raise _foreign(file, document.id, self._owners[document.id])
        with self._collection.session() as session:
            for page in batched([document.id for document in documents], SQL_VARIABLES):
                rows = session.execute(
                    select(DocumentRow.external_id, DocumentRow.source).where(
                        DocumentRow.collection_id == self._collection.id,
                        DocumentRow.external_id.in_(page),
                        func.coalesce(DocumentRow.source, "") != file.uri,
                    )
                )
                for id, source in rows:
                    if source is None or not _is_gone(path_of(source)):
                        raise _foreign(file, id, source or "a document that is no file")


def _foreign(file: File, id: str, owner: str) -> LoaderError:
    reason = f"its id {id!r} already belongs to {owner}; index a folder above both"
    return LoaderError(str(file.path), reason)


def _stamp(file: File) -> str:
    """Size and modification time; LoaderError when it is not a regular file of a permitted size and name."""
    try:
        file.name.encode()  # it becomes the document's id
    except UnicodeEncodeError:
        raise LoaderError(str(file.path), "its name is not UTF-8; rename it") from None
    try:
        found = file.path.stat()
    except OSError as error:
        raise LoaderError(str(file.path), f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise LoaderError(str(file.path), "not a regular file")
    if found.st_size > limits.MAX_FILE_BYTES:
        raise LoaderError(
            str(file.path), f"{found.st_size:,} bytes, {limits.MAX_FILE_BYTES:,} are allowed; split the file"
        )
    return f"{found.st_size}:{found.st_mtime_ns}"


def path_of(uri: str) -> Path:
    """The path of a file URI."""
    from urllib.parse import unquote, urlsplit

    return Path(unquote(urlsplit(uri).path))


def _is_gone(path: Path) -> bool:
    """Whether there is nothing at the path. One that may not be looked at is not gone."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _is_in(path: Path, part: tuple[int, int]) -> bool:
    """Whether a file is in the k-th of n shares: by its path, so that all processes agree without asking."""
    k, n = part
    return n == 1 or zlib.crc32(os.fsencode(path)) % n == k - 1


def _missing(collection: "Collection", roots: Sequence[Path], part: tuple[int, int]) -> list[str]:
    """Ids of documents whose file under one of the folders, and in this share of them, no longer exists."""
    missing = []
    for root in roots:
        prefix = root.as_uri().rstrip("/") + "/"
        with collection.session() as session:
            rows = session.execute(
                select(DocumentRow.external_id, DocumentRow.source).where(
                    DocumentRow.collection_id == collection.id,
                    DocumentRow.source >= prefix,
                    DocumentRow.source < prefix[:-1] + "0",  # the character after "/"
                )
            )
            files = ((id, path_of(source)) for id, source in rows if source)
            missing += [id for id, path in files if _is_in(path, part) and _is_gone(path)]
    return missing
