"""Prefill and decode on GPUs of their own: what a pair of pools takes, and the best one."""

from jaxlens.pools.estimates import (
    Pool,
    PoolLoad,
    PoolsEstimate,
    balanced_replicas,
    decode_load,
    joined,
    predict_pools,
    prefill_load,
)
from jaxlens.pools.search import PoolPair, PoolsResult, best_pools

__all__ = [
    "Pool",
    "PoolLoad",
    "PoolPair",
    "PoolsEstimate",
    "PoolsResult",
    "balanced_replicas",
    "best_pools",
    "decode_load",
    "joined",
    "predict_pools",
    "prefill_load",
]
