"""The commands that run a deployment: server, clock and power of its GPUs, benchmark."""

from jaxlens.commands.benchmarks import benchmark_command as benchmark_command
from jaxlens.commands.gpus import gpu_commands as gpu_commands
from jaxlens.commands.servers import SERVERS as SERVERS
from jaxlens.commands.servers import serve_commands as serve_commands
from jaxlens.commands.settings import Checkpoint as Checkpoint
from jaxlens.commands.settings import checkpoint as checkpoint
from jaxlens.commands.vllm import serve_command as serve_command
