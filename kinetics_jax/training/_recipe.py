"""How a model is trained: every number that the result depends on, and nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Describe one training run.

    Attributes:
        num_steps: Optimiser steps.
        batch_size: Sequences per step.
        learning_rate: Peak of the warm-up and cosine schedule; it ends at a hundredth of the peak.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Decoupled weight decay of AdamW on matrices.
        max_grad_norm: Gradients are clipped to this global norm.
        depth_weights: Relative frequency of each depth of the task, shallowest first.
        seed: Seed of the initial weights; data come from the task's training split whatever the seed.

    Raises:
        ValueError: If a count is below one or the warm-up does not fit.
    """

    num_steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 500
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    depth_weights: tuple[float, ...] = (2.0, 2.0, 2.0, 3.0, 3.0)
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("num_steps", "batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1; got {getattr(self, field)}")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(
                f"warmup_steps must lie in [0, num_steps); got {self.warmup_steps} of {self.num_steps} steps"
            )
