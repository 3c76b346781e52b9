"""Commands and configurations of every engine: as documented, quoted, and the same wherever the folder is."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from perfmodel.engines.known_engines import ENGINES
from s2d.exporting.export import ENGINE_FILES
from s2d.exporting.serving import EngineFiles, Serving
from tests.s2d.exporting.serving_factory import HOSTILE, by_batch, floored, serving

STUBS = ("vllm", "python3", "trtllm-serve", "llama-server", "llama-cli", "mlx_lm.server", "mlx_lm.generate", "s2d-run")
HEAD = """\
#!/bin/sh
# {purpose}
set -eu
case ${{TARGET:-}} in "" | /*) ;; *) if [ -e "$TARGET" ]; then TARGET=$PWD/$TARGET; fi ;; esac
cd -- "$(dirname -- "$0")"
export HF_HUB_OFFLINE=${{HF_HUB_OFFLINE:-1}}
if [ -z "${{TARGET:-}}" ]; then TARGET=/models/target; fi
"""


def files_of(made: Serving) -> EngineFiles:
    return ENGINE_FILES[made.engine.name](made)


def text_of(made: Serving, name: str) -> str:
    return next(file.text for file in files_of(made).files if file.name == name)


def speculative_config(text: str) -> dict:
    return json.loads(shlex.split(text.partition("--speculative-config ")[2])[0])


def test_every_engine_of_the_table_can_be_exported_to() -> None:
    assert ENGINE_FILES.keys() == ENGINES.keys()


def test_vllm_is_served_as_documented() -> None:
    config = (
        '{"method": "draft_model", "model": "draft", "num_speculative_tokens": 3, "draft_tensor_parallel_size": 1, '
        '"max_model_len": 8192}'
    )
    expected = f"""\
PORT=${{PORT:-8000}}
exec ${{VLLM_SERVE:-vllm serve}} "$TARGET" \\
    --host 127.0.0.1 \\
    --port "${{PORT}}" \\
    --dtype bfloat16 \\
    --max-model-len 8192 \\
    --tensor-parallel-size 2 \\
    --per-request-spec-decode-metrics detailed \\
    --speculative-config '{config}' \\
    "$@"
"""
    assert text_of(serving("vllm"), "serve.sh") == HEAD.format(purpose="Serve the plan with vLLM.") + expected
    assert "speculative" not in text_of(serving("vllm"), "serve-plain.sh")


def test_vllm_accepts_synthetically_at_the_planned_rates() -> None:
    config = speculative_config(text_of(serving("vllm"), "serve-synthetic.sh"))
    rates = config["synthetic_acceptance_rates"]
    assert config["rejection_sample_method"] == "synthetic"
    assert rates == sorted(rates, reverse=True) == [0.75, 0.5, 0.3333]
    assert len(rates) == config["num_speculative_tokens"]


def test_vllm_gets_a_schedule_only_if_the_plan_has_one() -> None:
    assert "serve-by-batch.sh" not in {file.name for file in files_of(serving("vllm")).files}
    config = speculative_config(text_of(by_batch(serving("vllm")), "serve-by-batch.sh"))
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 7, 3], [8, 64, 1]]
    assert config["num_speculative_tokens"] == 3


def test_vllm_takes_memory_for_the_plan_alone_on_a_cpu() -> None:
    line = "export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-5}\n"
    for name in ("serve.sh", "serve-plain.sh", "serve-synthetic.sh"):
        assert line in text_of(serving("vllm", num_threads=4), name)
        assert line not in text_of(serving("vllm"), name)


def test_quantised_weights_are_a_method_in_vllm_and_sglang() -> None:
    assert "--quantization fp8" in text_of(serving("vllm", "fp8"), "serve.sh")
    assert "--speculative-draft-model-quantization unquant" in text_of(serving("sglang", "fp8"), "serve.sh")


def test_sglang_gets_its_three_options_together() -> None:
    text = text_of(serving("sglang"), "serve.sh")
    assert "--speculative-algorithm STANDALONE \\\n    --speculative-draft-model-path draft \\\n" in text
    assert "--speculative-num-steps 3 \\\n    --speculative-eagle-topk 1 \\\n    --speculative-num-draft-tokens 4 \\\n" in text
    assert "export SGLANG_SIMULATE_ACC_LEN=2.583\n" in text_of(serving("sglang"), "serve-synthetic.sh")


def test_tensorrt_llm_reads_a_yaml_file() -> None:
    yaml = """\
disable_overlap_scheduler: true
speculative_config:
  decoding_type: DraftTarget
  max_draft_len: 3
  speculative_model: "draft"
"""
    assert text_of(serving("tensorrt-llm"), "config.yaml") == yaml
    assert "--max_batch_size 8 \\\n    --config config.yaml" in text_of(serving("tensorrt-llm"), "serve.sh")
    assert "config.yaml" not in text_of(serving("tensorrt-llm"), "serve-plain.sh")


def test_llama_cpp_gets_the_type_with_the_draft() -> None:
    text = text_of(serving("llama.cpp", "q8_0", num_threads=4), "serve.sh")
    assert "    --spec-type draft-simple \\\n    --spec-draft-model draft.gguf \\\n    --spec-draft-n-max 3 \\\n" in text
    assert "    --ctx-size 4096 \\\n    --threads 4 \\\n    --parallel 1 \\\n    --metrics \\\n" in text
    assert "--spec-draft-p-min 0.4 " in text_of(floored(serving("llama.cpp"), 0.4), "serve.sh")
    assert "--spec-synth-rates 0.75,0.5,0.3333 " in text_of(serving("llama.cpp"), "serve-synthetic.sh")


def test_mlx_lm_gets_the_draft_and_its_length() -> None:
    assert "--draft-model draft \\\n    --num-draft-tokens 3 " in text_of(serving("mlx-lm"), "serve.sh")
    assert "--draft-model draft" in text_of(serving("mlx-lm"), "generate.sh")


def test_python_libraries_get_a_script_that_is_python() -> None:
    for engine in ("openvino", "onnxruntime", "transformers"):
        for target in ("target", HOSTILE):
            text = text_of(serving(engine, "f32", target=target, num_threads=2), "generate.py")
            compile(text, "generate.py", "exec")
            assert f"TARGET = {target!r}\n" in text
    assert "config.num_assistant_tokens = NUM_ASSISTANT_TOKENS" in text_of(serving("openvino", "f32"), "generate.py")
    assert "set_speculative_options(max_draft_tokens=MAX_DRAFT_TOKENS)" in text_of(serving("onnxruntime", "f32"), "generate.py")


def test_nothing_is_downloaded_unless_it_is_asked_for() -> None:
    for engine in ("vllm", "sglang", "tensorrt-llm", "mlx-lm"):
        for file in files_of(serving(engine)).files:
            if file.is_command:
                assert "export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}\n" in file.text
    script = text_of(serving("transformers", "f32"), "generate.py")
    assert script.index('os.environ.setdefault("HF_HUB_OFFLINE", "1")') < script.index("import torch")


def test_every_server_listens_on_the_loopback_address_only() -> None:
    for engine in ENGINES:
        scripts = [file for file in files_of(serving(engine)).files if file.name.startswith("serve")]
        assert not [script.name for script in scripts if "--host 127.0.0.1" not in script.text and script.name.endswith(".sh")]


@pytest.mark.e2e
@pytest.mark.parametrize("engine", ENGINES)
def test_scripts_quote_hostile_names_and_run_in_their_own_folder(engine: str, tmp_path: Path) -> None:
    folder, programs = tmp_path / HOSTILE.replace("/", ""), tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    for stub in STUBS:
        code = '#!/bin/sh\npwd > "$RECORD"\nfor word in "$@"; do printf \'%s\\n\' "$word" >> "$RECORD"; done\n'
        (programs / stub).write_text(code, encoding="utf-8")
        (programs / stub).chmod(0o755)
    record = tmp_path / "record"
    for file in files_of(serving(engine, target=HOSTILE, draft=HOSTILE)).files:
        if not file.name.endswith(".sh"):
            continue
        script = folder / file.name
        script.write_text(file.text, encoding="utf-8")
        script.chmod(0o755)
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record)}
        subprocess.run([script, "--own", "a b"], check=True, env=environment, cwd=tmp_path)
        place, *words = record.read_text(encoding="utf-8").splitlines()
        assert Path(place) == folder
        assert HOSTILE in words
        assert words[-2:] == ["--own", "a b"]
        (tmp_path / "mine").mkdir(exist_ok=True)
        subprocess.run([script], check=True, env=environment | {"TARGET": "mine"}, cwd=tmp_path)
        assert str(tmp_path / "mine") in record.read_text(encoding="utf-8").splitlines()
        subprocess.run([script], check=True, env=environment | {"TARGET": "org/name"}, cwd=tmp_path)
        assert "org/name" in record.read_text(encoding="utf-8").splitlines()
        if "--speculative-config" in words:
            assert json.loads(words[words.index("--speculative-config") + 1])["model"] == HOSTILE
    assert not list(tmp_path.rglob("hacked"))
