"""llama.cpp's server inside a Python process, by the package xllamacpp: `python xllamacpp_server.py SETTINGS`.

It listens on 127.0.0.1 at the port of the settings, writes the package's version to their `version_file`, and serves until it
is ended.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Start the server of the settings, and wait."""
    import xllamacpp

    settings = json.loads(sys.argv[1])
    params = xllamacpp.CommonParams()
    params.model.path = settings["target"]
    params.hostnames, params.port = ["127.0.0.1"], settings["port"]
    params.n_ctx = settings["context_tokens"]
    params.n_parallel = 1
    params.cache_ram_mib = 0
    params.cache_prompt = False
    params.fit_params = False
    params.endpoint_metrics = True
    _set_threads(params, settings)
    if settings["draft"] is not None:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        draft = params.speculative.draft
        draft.mparams.path = settings["draft"]
        draft.n_max = settings["draft_tokens"]
        draft.p_min = settings["floor"] or 0.0
        _set_threads(draft, settings)
    server = xllamacpp.Server(params)
    Path(settings["version_file"]).write_text(xllamacpp.__version__, encoding="utf-8")
    sys.stderr.write(f"listening on {server.listening_address}\n")
    signal.pause()


def _set_threads(params: Any, settings: dict[str, Any]) -> None:
    if settings["num_threads"] is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["num_threads"]


if __name__ == "__main__":
    main()
