"""The server of every engine for one deployment."""

from jaxlens.commands import sglang, tensorrt_llm, vllm
from jaxlens.commands.settings import Checkpoint
from jaxlens.memory import memory
from jaxlens.requests import Request

SERVERS = ("vllm", "sglang", "tensorrt_llm")
NVIDIA_ONLY = "# TensorRT-LLM runs on NVIDIA GPUs only"


def serve_commands(checkpoint: Checkpoint, request: Request) -> dict[str, str]:
    """Returns the command of each server by name of `SERVERS`.

    What a server cannot do is said in lines that start with #.
    """
    chip, stack = request.profile.chip, request.profile.stack
    deployment, workload = request.deployment, request.workload
    held = memory(request.model, chip, stack, deployment, workload)
    asked = checkpoint, chip, stack, deployment, workload
    nvidia = request.card.vendor == "NVIDIA"
    return {
        "vllm": vllm.serve_command(*asked),
        "sglang": sglang.serve_command(*asked, held),
        "tensorrt_llm": (
            tensorrt_llm.serve_command(*asked, held) if nvidia else NVIDIA_ONLY
        ),
    }
