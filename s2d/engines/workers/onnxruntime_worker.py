"""ONNX Runtime GenAI.

`decode_s` runs from the end of the prompt's passes, which `append_tokens` makes, to the last token. Without a draft, the first
token needs no pass of its own after them (`untimed_tokens` 1). With a draft, it comes out of the first round (0).
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any


class Engine:
    """A model, with or without its draft; the draft length can change from call to call."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        self.version = onnxruntime_genai.__version__
        self._has_draft = settings["draft"] is not None
        self._model = onnxruntime_genai.Model(_composite_folder(settings))

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode one prompt greedily, to exactly the requested number of tokens."""
        import numpy as np

        prompt, total = request["prompt"], len(request["prompt"]) + request["max_new_tokens"]
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=total, min_length=total, do_sample=False, batch_size=1)
        if self._has_draft:
            params.set_speculative_options(max_draft_tokens=request["draft_tokens"])
        generator = self._genai.Generator(self._model, params)
        start_s = time.perf_counter()
        generator.append_tokens(np.array(prompt, np.int32))
        prompt_end_s = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        end_s = time.perf_counter()
        tokens = generator.get_sequence(0)[len(prompt) :].tolist()
        answer = {"tokens": tokens, "call_s": end_s - start_s, "decode_s": end_s - prompt_end_s, "untimed_tokens": 1, "raw": {}}
        if self._has_draft:
            answer |= _speculation(dict(generator.get_speculative_stats()))
        return answer


def _speculation(stats: dict[str, Any]) -> dict[str, Any]:
    return {
        "untimed_tokens": 0,
        "num_rounds": stats["rounds"],
        "num_drafted": stats["draft_tokens_proposed"],
        "num_accepted": stats["draft_tokens_accepted"],
        "draft_s": stats["total_draft_ms"] / 1e3,
        "verify_s": stats["total_target_ms"] / 1e3,
        "raw": {name: value for name, value in stats.items() if isinstance(value, int | float | list)},
    }


def _composite_folder(settings: dict[str, Any]) -> str:
    """A folder with both models and one configuration, which may name no file outside of it."""
    folder, target = Path(settings["scratch"]), Path(settings["target"])
    config = json.loads((target / "genai_config.json").read_text(encoding="utf-8"))
    decoder = config["model"]["decoder"]
    decoder |= _with_threads(decoder, settings) | {"filename": _placed(target, folder / "target", decoder["filename"])}
    if settings["draft"] is not None:
        source = Path(settings["draft"])
        draft = json.loads((source / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
        filename = _placed(source, folder / "draft", draft["filename"])
        config["model"]["draft"] = _with_threads(draft, settings) | {"filename": filename}
        config["speculative"] = {"max_draft_tokens": settings["draft_tokens"]}
    config["search"]["past_present_share_buffer"] = True
    for file in target.iterdir():
        if "token" in file.name or file.suffix in (".jinja", ".txt"):
            shutil.copy(file, folder)
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def _placed(source: Path, folder: Path, filename: str) -> str:
    """Link the files of a model into a folder, or copy them from another disk; returns the name for the configuration."""
    folder.mkdir()
    for file in source.glob(f"{filename}*"):
        try:
            os.link(file.resolve(), folder / file.name)
        except OSError:
            shutil.copy(file, folder)
    return f"{folder.name}/{filename}"


def _with_threads(decoder: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    if settings["num_threads"] is None:
        return decoder
    threads = {"intra_op_num_threads": settings["num_threads"], "inter_op_num_threads": 1}
    return decoder | {"session_options": decoder.get("session_options", {}) | threads}
