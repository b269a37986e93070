"""The sandboxed side of `sandbox`: reads frames from stdin, parses, answers on stdout, until stdin ends."""

import json
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any, BinaryIO

from indexer.loaders.part import Part, UnreadableFile

# kind -> module and function; imported when a file of that kind first arrives
_PARSERS = {
    "html": ("markup", "parse_html"),
    "xml": ("markup", "parse_xml"),
    "epub": ("epub", "parse_epub"),
    "eml": ("mail", "parse_eml"),
    "pdf": ("pdf", "parse_pdf"),
    "docx": ("office", "parse_docx"),
    "pptx": ("office", "parse_pptx"),
    "xlsx": ("office", "parse_xlsx"),
    "csv": ("tables", "parse_csv"),
    "tsv": ("tables", "parse_csv"),
    "json": ("tables", "parse_json"),
    "jsonl": ("tables", "parse_jsonl"),
}


def main(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file grows by this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Parsers that print must not write into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    while lengths := questions.read(16):
        header = json.loads(questions.read(int.from_bytes(lengths[:8], "big")))
        data = questions.read(int.from_bytes(lengths[8:], "big"))
        _answer(answers, *_parse(header["kind"], data, header["name"]))


def _parse(kind: str, data: bytes, name: str) -> tuple[dict[str, Any], bytes]:
    try:
        parts = _parser(kind)(data, name)
        return {}, json.dumps([asdict(part) for part in parts]).encode()
    except UnreadableFile as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": "reading it needs more memory than a file may use; is it a decompression bomb?"}, b""
    except RecursionError:
        return {"error": "it is nested too deeply"}, b""
    except Exception as error:  # a parser may raise anything on a damaged file
        detail = " ".join(str(error).split())[:200]
        return {"error": f"it is damaged or not a valid {kind} file ({type(error).__name__}: {detail})"}, b""


def _parser(kind: str) -> Callable[[bytes, str], list[Part]]:
    module, function = _PARSERS[kind]
    parser: Callable[[bytes, str], list[Part]] = getattr(import_module(f"indexer.loaders.{module}"), function)
    return parser


def _answer(pipe: BinaryIO, header: dict[str, Any], body: bytes) -> None:
    encoded = json.dumps(header).encode()
    pipe.write(len(encoded).to_bytes(8, "big") + len(body).to_bytes(8, "big") + encoded + body)
    pipe.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
