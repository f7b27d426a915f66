"""How a model is trained: every number that the result depends on, and nothing else."""

from dataclasses import dataclass

from kinetics_jax.tasks import DEPTHS


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
        ValueError: If a count is below one, the warm-up does not fit, a rate is out of range, or the depth weights
            are not one for each depth.
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
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.max_grad_norm > 0):
            raise ValueError(
                "learning_rate and max_grad_norm must be positive and weight_decay not negative; "
                f"got {self.learning_rate}, {self.max_grad_norm} and {self.weight_decay}"
            )
        weights = self.depth_weights
        if len(weights) != len(DEPTHS) or not (min(weights) >= 0 and sum(weights) > 0):
            raise ValueError(
                f"depth_weights must be {len(DEPTHS)} numbers, one for each depth of {DEPTHS}, none negative and "
                f"not all zero; got {weights}"
            )
