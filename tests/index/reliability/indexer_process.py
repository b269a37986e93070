"""A process that writes until it is killed.

`python indexer_process.py STORE SEED LOG`: puts, changes and deletes documents, and writes to LOG what it is
going to write and what was acknowledged. With a folder instead of LOG it indexes that once.
"""

import os
import random
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import PIPELINE, FakeEmbedder

from indexer import vectors
from indexer.store import open_store
from indexer.types import Document


def main() -> None:
    store_path, seed, target = sys.argv[1:]
    vectors.SNAPSHOT_ROWS = 40  # so that there is a snapshot being written at many of the moments
    random.seed(int(seed))
    embedder = FakeEmbedder()
    with open_store(store_path, lambda model_id: embedder, pipeline=PIPELINE) as store:
        collection = store.collection_or_create("default")
        print("ready", flush=True)
        if Path(target).is_dir():
            report = collection.index_paths([target])
            print(report.resumed, report.unchanged, report.added, flush=True)
            return
        log = os.open(target, os.O_WRONLY | os.O_APPEND)
        for n in count():
            ids = random.sample(range(300), 8)
            batch = [Document(f"d{id}", f"word{seed}x{n} number{id} w{random.randrange(9)}") for id in ids]
            os.write(log, "".join(f"intent {d.id} {d.text}\n" for d in batch).encode())
            collection.upsert(batch)
            os.write(log, "".join(f"done {d.id} {d.text}\n" for d in batch).encode())
            gone = f"d{random.randrange(300, 320)}"
            collection.upsert([Document(gone, "soon deleted")])
            collection.delete([gone])
            if n % 10 == 9:
                collection.vectors.search(embedder.encode_query("word"), 5)


if __name__ == "__main__":
    main()
