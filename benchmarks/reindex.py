"""What it costs to index a folder again that has not changed: `python -m benchmarks.reindex`.

A folder of 1,000 short files is made of udhr.jsonl and indexed twice with the bundled model; then one file is
edited and the folder is indexed a third time. The second run must embed nothing.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from indexer import open_store
from rwkv_embed import Embedder

TEXTS = Path(__file__).with_name("udhr.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description="Index a folder, and again when nothing has changed.")
    parser.add_argument("--files", type=int, default=1_000)
    files = parser.parse_args().files
    embedder = Embedder()
    embedder.encode_document(["what is loaded at first use is loaded now"])
    with (
        tempfile.TemporaryDirectory() as folder,
        open_store(Path(folder) / "store", lambda model: embedder) as store,
    ):
        documents = make_folder(Path(folder) / "documents", files)
        collection = store.create_collection("default")
        seconds = {}
        for run in ("first", "unchanged", "one file edited"):
            if run == "one file edited":
                (documents / "0000.txt").write_text("This text is new.", encoding="utf-8")
            start = time.perf_counter()
            report = collection.index_paths([documents])
            seconds[run] = time.perf_counter() - start
            print(
                f"{run}: {seconds[run]:.2f} s, {report.chunks_embedded} passages embedded, "
                f"{report.unchanged} documents unchanged"
            )
        print(f"unchanged / first: {seconds['unchanged'] / seconds['first']:.3f}")


def make_folder(folder: Path, count: int) -> Path:
    """Files that are all different: a text of udhr.jsonl each, under a number."""
    texts = [json.loads(line)["text"] for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    folder.mkdir()
    for n in range(count):
        (folder / f"{n:04}.txt").write_text(f"{n}. {texts[n % len(texts)]}", encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
