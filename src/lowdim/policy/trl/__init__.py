"""Hybrid-GRPO in the trainer that people use: a subclass of TRL's ``GRPOTrainer``."""

from lowdim.errors import MissingExtra

try:
    import trl as _trl
except ImportError as error:  # pragma: no cover - exercised in a process without trl
    raise MissingExtra("trl", extra="policy", purpose="train language-model policies") from error

from lowdim.policy.trl.config import HybridGRPOConfig
from lowdim.policy.trl.trainer import HybridGRPOTrainer

__all__ = ["HybridGRPOConfig", "HybridGRPOTrainer"]

del _trl
