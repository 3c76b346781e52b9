"""The table of engines that plans are made for."""

from perfmodel.engines.engine import EngineTable
from perfmodel.engines.local_engines import LLAMA_CPP, ONNXRUNTIME, OPENVINO
from perfmodel.engines.python_engines import MLX_LM, S2D, TRANSFORMERS
from perfmodel.engines.server_engines import SGLANG, TENSORRT_LLM, VLLM

ENGINES: EngineTable = {
    engine.name: engine for engine in (S2D, VLLM, SGLANG, TENSORRT_LLM, LLAMA_CPP, OPENVINO, ONNXRUNTIME, TRANSFORMERS, MLX_LM)
}
