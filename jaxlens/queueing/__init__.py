"""Latency at load: what waiting adds when requests arrive at a rate of their own."""

from jaxlens.queueing.latencies import (
    Arrivals,
    LoadEstimate,
    at_load,
    check_arrivals,
    server_load,
)

__all__ = ["Arrivals", "LoadEstimate", "at_load", "check_arrivals", "server_load"]
