"""Scripts for the interpreters of engines: decode greedily, and tokenize as llama.cpp does."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from s2d.engines.environments import engine_python, is_installed

ONNXRUNTIME = """
import json, sys, numpy, onnxruntime_genai as genai
path, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = genai.Model(path)
params = genai.GeneratorParams(model)
params.set_search_options(max_length=len(prompt) + count, min_length=len(prompt) + count, do_sample=False, batch_size=1)
generator = genai.Generator(model, params)
generator.append_tokens(numpy.array(prompt, numpy.int32))
while not generator.is_done():
    generator.generate_next_token()
print(json.dumps(generator.get_sequence(0)[len(prompt):].tolist()))
"""
OPENVINO = """
import json, sys, numpy, openvino, openvino_genai as genai
path, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
pipeline = genai.LLMPipeline(path, "CPU", INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32")
config = genai.GenerationConfig(max_new_tokens=count, do_sample=False, ignore_eos=True, apply_chat_template=False)
ids = numpy.array([prompt], numpy.int64)
result = pipeline.generate(genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids))), config)
print(json.dumps(list(result.tokens[0])))
"""
MLX = """
import json, sys
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
import mlx.core
from pathlib import Path
path, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model, _ = load_model(Path(path))
print(json.dumps([int(token) for token, _ in generate_step(mlx.core.array(prompt), model, max_tokens=count)][:count]))
"""
TRANSFORMERS = """
import json, sys, torch, transformers
path, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = transformers.AutoModelForCausalLM.from_pretrained(path)
options = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, suppress_tokens=None, eos_token_id=None)
print(json.dumps(model.generate(torch.tensor([prompt]), **options)[0, len(prompt):].tolist()))
"""
LLAMA_CPP = """
import json, sys, urllib.request, xllamacpp
path, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.fit_params = path, 256, 1, False
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in half precision
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
def ask(name, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.listening_address}/{name}", json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request))
if isinstance(prompt, str):
    print(json.dumps(ask("tokenize", {"content": prompt, "add_special": True})["tokens"]), flush=True)
else:
    options = {"temperature": 0.0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True, "return_tokens": True}
    print(json.dumps(ask("completion", {"prompt": prompt, "n_predict": count, **options})["tokens"]), flush=True)
"""
SCRIPTS = {
    "llama.cpp": LLAMA_CPP,
    "mlx-lm": MLX,
    "onnxruntime": ONNXRUNTIME,
    "openvino": OPENVINO,
    "transformers": TRANSFORMERS,
}


def skip_without(engine: str) -> None:
    if not is_installed(engine):
        pytest.skip(f"{engine} is not installed: s2d-engines install {engine}")


def run_script(engine: str, model: Path, prompt: Sequence[int] | str, count: int = 0) -> list[int]:
    """The tokens that an engine emits after a prompt, or the ids of a text."""
    given = prompt if isinstance(prompt, str) else list(prompt)
    command = [str(engine_python(engine)), "-c", SCRIPTS[engine], str(model), json.dumps(given), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(token) for token in json.loads(done.stdout.splitlines()[-1])]
