"""Scripts and configurations of OpenVINO GenAI, ONNX Runtime GenAI, transformers and this project's runtime."""

import textwrap

from perfmodel.engines.weight_words import torch_dtype_name
from s2d.exporting.serving import TARGET_VARIABLE, EngineFiles, Serving, TextFile, command_lines, quote_words, script

OPENVINO_CACHE_GB = 4
"""Memory for the KV caches of target and draft together, in OpenVINO's unit."""
_ARGUMENTS = """\
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("text", help="the text to continue")
parser.add_argument("--max-new-tokens", type=int, default=128, metavar="TOKENS")
parser.add_argument("--plain", action="store_true", help="decode without the draft")
"""
_PLACES = """\
parser.add_argument("--target", metavar="PATH", help="another place of the target")
args = parser.parse_args()
target = args.target or TARGET
if args.target and Path(args.target).exists():
    target = str(Path(args.target).resolve())
os.chdir(Path(__file__).resolve().parent)  # the paths above are relative to this folder
"""


def openvino_files(serving: Serving) -> EngineFiles:
    """A Python script with `LLMPipeline`, the draft and the generation configuration."""
    precision = {"f32": "f32", "fp32": "f32"}.get(serving.weights)
    threads = {} if serving.num_threads is None else {"INFERENCE_NUM_THREADS": serving.num_threads}
    exact = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
    body = f"""\
import argparse
import os
from pathlib import Path

import openvino_genai

TARGET = {serving.target!r}
DRAFT = {serving.draft!r}
NUM_ASSISTANT_TOKENS = {serving.policy.draft_tokens}
DEVICE = "CPU"
OPTIONS = {threads | exact!r}

{_ARGUMENTS}{_PLACES}
scheduler = openvino_genai.SchedulerConfig()
scheduler.cache_size = {OPENVINO_CACHE_GB}  # GB, shared by target and draft
scheduler.max_num_seqs = {serving.max_batch}
draft = {{}} if args.plain else {{"draft_model": openvino_genai.draft_model(DRAFT, DEVICE, **OPTIONS)}}
pipeline = openvino_genai.LLMPipeline(target, DEVICE, scheduler_config=scheduler, **draft, **OPTIONS)

config = openvino_genai.GenerationConfig()
config.max_new_tokens = args.max_new_tokens
config.do_sample = False
config.apply_chat_template = False
if not args.plain:
    config.num_assistant_tokens = NUM_ASSISTANT_TOKENS
print(pipeline.generate(args.text, config))
"""
    notes = (
        "OpenVINO drafts in its PagedAttention backend only. `assistant_confidence_threshold` excludes `num_assistant_tokens`.",
        "OpenVINO's acceptance at a temperature above 0 does not keep the target's distribution: decode greedily.",
    )
    return EngineFiles(files=(_generate_script(body, "OpenVINO GenAI"),), notes=notes)


def onnxruntime_files(serving: Serving) -> EngineFiles:
    """A Python script. `write_composite` writes the configuration once the models are converted."""
    body = f"""\
import argparse
import os
from pathlib import Path

import onnxruntime_genai

TARGET = {serving.target!r}
MAX_DRAFT_TOKENS = {serving.policy.draft_tokens}

{_ARGUMENTS}args = parser.parse_args()
os.chdir(Path(__file__).resolve().parent)  # the paths above are relative to this folder

model = onnxruntime_genai.Model(TARGET if args.plain else ".")  # genai_config.json of this folder names the draft
tokenizer = onnxruntime_genai.Tokenizer(model)
params = onnxruntime_genai.GeneratorParams(model)
prompt = tokenizer.encode(args.text)
params.set_search_options(max_length=len(prompt) + args.max_new_tokens, do_sample=False, batch_size=1)
if not args.plain:
    params.set_speculative_options(max_draft_tokens=MAX_DRAFT_TOKENS)
generator = onnxruntime_genai.Generator(model, params)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)[len(prompt):]))
if not args.plain:
    print(dict(generator.get_speculative_stats()))
"""
    notes = (
        "`min_adaptive_k` is not set: ONNX Runtime would then choose lengths itself, starting at the shortest.",
        "ONNX Runtime GenAI drafts for one sequence at a time.",
    )
    return EngineFiles(files=(_generate_script(body, "ONNX Runtime GenAI"),), notes=notes)


def transformers_files(serving: Serving) -> EngineFiles:
    """A Python script with assisted generation. The settings are in the draft's generation_config.json."""
    dtype = torch_dtype_name(serving.weights) or serving.weights
    threads = "" if serving.num_threads is None else f"torch.set_num_threads({serving.num_threads})\n"
    body = f"""\
import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGET = {serving.target!r}
DRAFT = {serving.draft!r}
DTYPE = torch.{dtype}

{_ARGUMENTS}{_PLACES}
{threads}tokenizer = AutoTokenizer.from_pretrained(target)
model = AutoModelForCausalLM.from_pretrained(target, dtype=DTYPE).eval()
draft = {{}}
if not args.plain:  # its generation_config.json has the draft length
    draft["assistant_model"] = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=DTYPE).eval()
inputs = tokenizer(args.text, return_tensors="pt")
inputs.pop("token_type_ids", None)
output = model.generate(**inputs, do_sample=False, max_new_tokens=args.max_new_tokens, **draft)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
"""
    floor = serving.policy.floor
    threshold = "a confidence threshold of 0" if floor is None else f"the confidence threshold {floor:g}"
    notes: tuple[str, ...] = (
        "transformers reads the draft length from the draft: draft/generation_config.json has num_assistant_tokens, a constant "
        f"schedule and {threshold}, because its defaults change the length while they run.",
    )
    if floor is not None:
        notes += ("Serve without scikit-learn: where it is installed, transformers changes the threshold while it runs.",)
    return EngineFiles(files=(_generate_script(body, "transformers"),), notes=notes)


def s2d_files(serving: Serving) -> EngineFiles:
    """`s2d-run` with the plan."""
    words = ["s2d-run --plan plan.json", f"--target {TARGET_VARIABLE}", *quote_words("--draft", serving.draft)]
    purpose = "Run the plan, and compare it with the prediction: run.sh --check."
    text = script(serving, purpose, [f"exec {command_lines(words)}"])
    run = TextFile(name="run.sh", text=text, purpose="runs the plan: ./run.sh --prompt TEXT, ./run.sh --check", is_command=True)
    return EngineFiles(files=(run,), notes=("The draft is exported whole, with all its exits.",))


def _generate_script(body: str, engine: str) -> TextFile:
    """`generate.py`, which continues a text."""
    text = f'"""Continue a text with {engine} and the plan\'s draft: python generate.py TEXT."""\n\n{textwrap.dedent(body)}'
    purpose = 'continues a text: python generate.py "Once upon a time"'
    return TextFile(name="generate.py", text=text, purpose=purpose, is_command=True)
