"""The configuration with which ONNX Runtime GenAI loads a target and its draft from one folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from s2d.exporting.serving import Serving

_CONFIG = "genai_config.json"


def write_composite(folder: Path, serving: Serving) -> None:
    """Write genai_config.json and the tokenizer at the top of a folder that holds both converted models.

    All paths in it are relative, and none leaves the folder: the engine refuses others.
    """
    config = _read(folder / serving.target)
    decoder = config["model"]["decoder"]
    draft = _read(folder / serving.draft)["model"]["decoder"]
    config["model"]["decoder"] = _placed(decoder, serving.target, serving.num_threads)
    config["model"]["draft"] = _placed(draft, serving.draft, serving.num_threads)
    config["speculative"] = {"max_draft_tokens": serving.policy.draft_tokens}
    config["search"]["past_present_share_buffer"] = True
    (folder / _CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    for file in sorted((folder / serving.target).iterdir()):
        if "token" in file.name or file.suffix in (".jinja", ".txt"):
            shutil.copyfile(file, folder / file.name)


def _read(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    return config


def _placed(decoder: dict[str, Any], name: str, num_threads: int | None) -> dict[str, Any]:
    """The entry of a model, with its file in the model's own folder and the threads of the plan."""
    placed = decoder | {"filename": f"{name}/{decoder['filename']}"}
    if num_threads is not None:
        threads = {"intra_op_num_threads": num_threads, "inter_op_num_threads": 1}
        placed["session_options"] = decoder.get("session_options", {}) | threads
    return placed
