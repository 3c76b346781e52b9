"""The configuration with which ONNX Runtime GenAI loads a target and its draft from one folder."""

import json
import shutil
from pathlib import Path

from s2d.engines.workers.onnxruntime_worker import CONFIG, composite_config, read_config, tokenizer_files
from s2d.exporting.serving import Serving


def write_composite(folder: Path, serving: Serving) -> None:
    """Write genai_config.json and the tokenizer at the top of a folder that holds both converted models.

    All paths in it are relative, and none leaves the folder: the engine refuses others.
    """
    target, draft = folder / serving.target, folder / serving.draft
    settings = {"num_threads": serving.num_threads, "draft_tokens": serving.policy.draft_tokens}
    config = composite_config(read_config(target), read_config(draft), settings)
    (folder / CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    for file in tokenizer_files(target):
        shutil.copyfile(file, folder / file.name)
