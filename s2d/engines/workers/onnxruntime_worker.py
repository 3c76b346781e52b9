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

CONFIG = "genai_config.json"
SEARCH = {"past_present_share_buffer": True}
"""Search options of every session and export: the cache is not copied after each pass."""


class Engine:
    """A model, with or without its draft; the draft length can change from call to call."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        self.version = onnxruntime_genai.__version__
        self.options = dict(SEARCH)
        self._has_draft = settings["draft"] is not None
        self._model = onnxruntime_genai.Model(_composite_folder(settings))

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode one prompt greedily, to exactly the requested number of tokens."""
        import numpy as np

        prompt, total = request["prompt"], len(request["prompt"]) + request["max_new_tokens"]
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=total, do_sample=False, batch_size=1)
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


def composite_config(target: dict[str, Any], draft: dict[str, Any] | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a folder that holds a target in `target` and a draft in `draft`.

    Args:
        target: its genai_config.json.
        draft: the same of the draft; None without one.
        settings: `num_threads` (None: the engine's default) and `draft_tokens`.
    """
    config = target | {"search": target["search"] | SEARCH, "model": dict(target["model"])}
    config["model"]["decoder"] = _placed(target["model"]["decoder"], "target", settings["num_threads"])
    if draft is not None:
        config["model"]["draft"] = _placed(draft["model"]["decoder"], "draft", settings["num_threads"])
        config["speculative"] = {"max_draft_tokens": settings["draft_tokens"]}
    return config


def _placed(decoder: dict[str, Any], folder: str, num_threads: int | None) -> dict[str, Any]:
    """The entry of a model whose files lie in a folder, with its threads."""
    placed = decoder | {"filename": f"{folder}/{decoder['filename']}"}
    if num_threads is not None:
        threads = {"intra_op_num_threads": num_threads, "inter_op_num_threads": 1}
        placed["session_options"] = decoder.get("session_options", {}) | threads
    return placed


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config


def tokenizer_files(folder: Path) -> list[Path]:
    """Files that the engine reads beside the configuration."""
    return [file for file in sorted(folder.iterdir()) if "token" in file.name or file.suffix in (".jinja", ".txt")]


def _composite_folder(settings: dict[str, Any]) -> str:
    """A folder with both models and one configuration, which may name no file outside of it."""
    folder, target = Path(settings["scratch"]), Path(settings["target"])
    draft = None if settings["draft"] is None else Path(settings["draft"])
    _link_model(target, folder / "target")
    if draft is not None:
        _link_model(draft, folder / "draft")
    for file in tokenizer_files(target):
        shutil.copy(file, folder)
    config = composite_config(read_config(target), None if draft is None else read_config(draft), settings)
    config["model"]["eos_token_id"] = []  # `min_length` would forbid the end token, and change the text
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def _link_model(source: Path, folder: Path) -> None:
    """Link the files of a model into a folder, or copy them from another disk."""
    folder.mkdir()
    filename = read_config(source)["model"]["decoder"]["filename"]
    for file in source.glob(f"{filename}*"):
        try:
            os.link(file.resolve(), folder / file.name)
        except OSError:
            shutil.copy(file, folder)
