"""The example of docs/training.md: fine-tune the bundled model on the sample's questions, and see what it forgets.

Run from the repository root:

    python -m benchmarks.fine_tuning FOLDER [--ntrex ntrex.jsonl.zst]

FOLDER gets train.jsonl, validation.jsonl and model/. Each question of data/eval/sample-crosslingual is paired
with the title and the first paragraph of every article that answers it; questions in Spanish, Russian and Swahili
validate. With --ntrex (a sentence in many languages a line), the accuracy of finding a translation among 200 is
measured before and after.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from benchmarks.sample_table import DATASET, json_lines
from indexer.evaluation.datasets import BitextDataset, load_datasets
from indexer.evaluation.runner import evaluate
from rwkv_embed import Embedder

HELD_OUT = ("es", "ru", "sw")
PASSAGE_CHARS = 400
NTREX_PAIRS, NTREX_SENTENCES = ("en-es", "en-hi", "en-sw", "en-zh"), 200


def write_pairs(folder: Path) -> dict[str, int]:
    """train.jsonl and validation.jsonl; returns how many pairs each has."""
    passages = {}
    for row in json_lines(DATASET / "corpus.jsonl"):
        parts = (part.strip() for part in row["text"].split("\n\n"))
        paragraphs = [part for part in parts if part and not part.startswith("#")]
        passages[row["_id"]] = f"{row['title']}\n{paragraphs[0][:PASSAGE_CHARS]}"
    questions = {row["_id"]: row for row in json_lines(DATASET / "queries.jsonl")}
    pairs: dict[str, list[str]] = defaultdict(list)
    with (DATASET / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            question = questions[row["query-id"]]
            name = "validation" if question["metadata"]["lang"] in HELD_OUT else "train"
            pair = {"query": question["text"], "positive": passages[row["corpus-id"]]}
            pairs[name].append(json.dumps(pair, ensure_ascii=False))
    for name, lines in pairs.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: len(lines) for name, lines in pairs.items()}


def ntrex_accuracy(model: str | None, file: Path) -> float:
    """Mean over the languages of how often the nearest sentence of the other language is the translation."""
    sets = [s for s in load_datasets(file) if isinstance(s, BitextDataset) and s.name in NTREX_PAIRS]
    some = [replace(s, first=s.first[:NTREX_SENTENCES], second=s.second[:NTREX_SENTENCES]) for s in sets]
    return evaluate(some, Embedder(model)).means()["dense"]["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ntrex", type=Path)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    print(write_pairs(folder), flush=True)
    command = [sys.executable, "-m", "api.cli", "train", str(folder / "train.jsonl")]
    command += ["--validation", str(folder / "validation.jsonl"), "--output", str(folder / "model")]
    subprocess.run(command, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.0f} s of processor time")
    if options.ntrex is not None:
        before, after = (ntrex_accuracy(model, options.ntrex) for model in (None, str(folder / "model")))
        pairs = ", ".join(NTREX_PAIRS)
        print(f"NTREX among {NTREX_SENTENCES}, {pairs}: {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    main()
