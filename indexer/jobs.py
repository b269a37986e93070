"""Durable progress of long ingestions: one row per job, advanced in the transaction that writes each batch.

A job is known by its key (what is being indexed). The row of a process that died is taken over by the next
run of the same key, which then skips what was committed; the row of a living process refuses a second run.
"""

import os
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from indexer.db.tables import JobRow, now
from indexer.errors import StoreLocked
from indexer.types import IngestReport

if TYPE_CHECKING:
    from indexer.store import Store

FOREIGN_HOST_SILENCE_S = 600  # a job of another host is dead when it has committed nothing for this long


@dataclass(slots=True)
class Job:
    """A running job that this process owns."""

    store: "Store"
    id: int
    resumed: bool

    def advance(self, session: Session, documents: int) -> None:
        """Count documents, in the transaction that wrote them."""
        session.execute(
            update(JobRow).where(JobRow.id == self.id).values(done=JobRow.done + documents, updated_at=now())
        )

    def finish(self, status: str, report: IngestReport) -> None:
        """Close the job as "done" or "failed"; a failed one is resumed like one whose process died."""
        values = {"status": status, "report": asdict(report), "updated_at": now()}
        with self.store.write("closing a job") as session:
            session.execute(update(JobRow).where(JobRow.id == self.id).values(values))


def start(store: "Store", collection_id: int, key: str, total: int | None) -> Job:
    """Take over the unfinished job of this key or begin a new one.

    StoreLocked: a living process is working on it.
    """
    with store.write("starting a job") as session:
        row = session.scalar(
            select(JobRow)
            .where(JobRow.collection_id == collection_id, JobRow.key == key, JobRow.status != "done")
            .order_by(JobRow.id.desc())
            .limit(1)
        )
        if row is None:
            row = JobRow(collection_id=collection_id, key=key, owner=this_process(), total=total)
            session.add(row)
            session.flush()
            return Job(store, row.id, resumed=False)
        if row.status == "running" and _is_alive(row):
            host, pid, _ = row.owner.split(":")
            raise StoreLocked(
                f"process {pid} on {host} has been indexing the same paths since "
                f"{row.started_at:%Y-%m-%d %H:%M:%S} UTC ({row.done} done); wait for it or stop it"
            )
        row.status, row.owner, row.total, row.done = "running", this_process(), total, 0
        return Job(store, row.id, resumed=True)


def this_process() -> str:
    """host:pid:start time; the start time tells a process from a later one with the same pid."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_time(os.getpid())}"


def _start_time(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time())
    except psutil.Error:
        return None


def _is_alive(row: JobRow) -> bool:
    if row.owner == this_process():
        return False  # an earlier run of this very process that was interrupted
    host, pid, started = row.owner.split(":")
    if host != socket.gethostname():
        return (now() - row.updated_at).total_seconds() < FOREIGN_HOST_SILENCE_S
    return str(_start_time(int(pid))) == started
