"""An independent look at a store: the standard library only, nothing of the code that wrote it.

`python checker.py DIRECTORY [LOG]` prints every problem. LOG has a line "intent ID TEXT" before a document
was written and "done ID TEXT" after that was acknowledged: of each id the last acknowledged text must be
there, or one intended later. Every line of a document is a chunk; its vector is worked out here as in
`fakes.FakeEmbedder`: words are counted by the first bytes of their SHA-256.
"""

import hashlib
import math
import sqlite3
import struct
import sys
import zlib
from pathlib import Path


def vector_of(text: str, dim: int) -> list[float]:
    counts = [0.0] * dim
    for word in text.lower().split():
        counts[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % dim] += 1
    length = math.sqrt(sum(count * count for count in counts))
    return [count / length for count in counts]


def problems_of(directory: Path, permitted: dict[str, set[str]]) -> list[str]:
    """What is wrong with a store in which every line of a document is a chunk."""
    database = sqlite3.connect(directory / "store.sqlite3")
    problems = [
        f"integrity: {row}" for row in database.execute("PRAGMA integrity_check") if row != ("ok",)
    ] + [f"foreign key: {row}" for row in database.execute("PRAGMA foreign_key_check")]
    documents = {}
    for id, external_id, collection_id, chars, body in database.execute(
        "SELECT id, external_id, collection_id, chars, body FROM documents"
    ):
        text = zlib.decompress(body).decode()
        documents[external_id] = text
        chunks = database.execute(
            "SELECT id, ordinal, start, end, text, vector FROM chunks WHERE document_id = ? ORDER BY ordinal",
            (id,),
        ).fetchall()
        if len(text) != chars or [row[4] for row in chunks] != [line for line in text.splitlines() if line]:
            problems.append(f"{external_id}: its chunks are not its lines")
        for number, (chunk_id, ordinal, start, end, chunk, vector) in enumerate(chunks):
            if ordinal != number or text[start:end] != chunk:
                problems.append(f"chunk {chunk_id}: wrong place")
            found = struct.unpack(f"<{len(vector) // 2}e", vector)
            if max(abs(a - b) for a, b in zip(found, vector_of(chunk, len(found)), strict=True)) > 1e-3:
                problems.append(f"chunk {chunk_id}: its vector is of another text")
            terms = database.execute(
                f"SELECT text FROM fts_{collection_id} WHERE id = ?", (chunk_id,)
            ).fetchall()
            if terms != [(chunk,)]:
                problems.append(f"chunk {chunk_id}: its terms are {terms}")
    for name, table in (("chunks", "chunks"), ("terms", "fts_1")):
        (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
        expected = sum(len(text.splitlines()) for text in documents.values())
        if count != expected:
            problems.append(f"{count} {name}, {expected} expected")
    for id, texts in permitted.items():
        if documents.get(id) not in texts:
            problems.append(f"lost: {id} should be one of {texts}, it is {documents.get(id)!r}")
    database.close()
    return problems


def permitted_by(log: Path) -> dict[str, set[str]]:
    """The texts each acknowledged document may have. The last line may be cut off: its writer was killed."""
    later: dict[str, set[str]] = {}
    permitted: dict[str, set[str]] = {}
    for line in log.read_text().split("\n")[:-1]:
        kind, id, text = line.split(" ", 2)
        if kind == "done":
            permitted[id] = later[id] = {text}
        else:
            later.setdefault(id, set()).add(text)
    return permitted


if __name__ == "__main__":
    log = permitted_by(Path(sys.argv[2])) if len(sys.argv) > 2 else {}
    print("\n".join(problems_of(Path(sys.argv[1]), log)))
