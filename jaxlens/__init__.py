"""Energy and latency of LLM inference, differentiable, from einsums to joules."""

from jaxlens.deployments import Deployment as Deployment
from jaxlens.deployments import Workload as Workload
from jaxlens.einsums import Einsum as Einsum
from jaxlens.loading import load_model as load_model
from jaxlens.predictions import Estimate as Estimate
from jaxlens.predictions import predict as predict
from jaxlens.profiles import Profile as Profile
from jaxlens.profiles import load_profile as load_profile
