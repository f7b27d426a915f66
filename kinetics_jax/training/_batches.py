"""Training batches drawn on the device: a prompt, its reference thought, and where the loss counts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from kinetics_jax.tasks import DEPTHS, PAD, problem_key, reference_thoughts, sample_questions


class TrainingBatch(NamedTuple):
    """Hold token ids [B, T] and, for each predicted position, whether it counts [B, T_thought].

    Attributes:
        token_ids: Prompt, thought, padding [B, T].
        loss_mask: Whether each thought token is real and not padding [B, T_thought].
    """

    token_ids: Int[Array, "B T"]
    loss_mask: Bool[Array, "B T_thought"]


def training_batch(
    step: int | Int[Array, ""], *, batch_size: int, depth_weights: tuple[float, ...], max_gen_len: int
) -> TrainingBatch:
    """Return batch `step` of the training split; jit-safe, the same for the same step.

    Args:
        step: Number of the batch.
        batch_size: Sequences, B.
        depth_weights: Relative frequency of each depth, shallowest first.
        max_gen_len: Thought tokens kept per sequence, <eos> included.

    Returns:
        The batch, with T = prompt_len + max_gen_len and T_thought = max_gen_len.
    """
    depth_key, question_key, thought_key = jax.random.split(problem_key("train", step), 3)
    log_weights = jnp.log(jnp.asarray(depth_weights))
    depth = jnp.asarray(DEPTHS)[jax.random.categorical(depth_key, log_weights, shape=(batch_size,))]
    questions = sample_questions(question_key, depth)
    thoughts = reference_thoughts(thought_key, questions, max_len=max_gen_len)
    token_ids = jnp.concatenate([questions.prompt_ids, thoughts], axis=1)
    return TrainingBatch(token_ids=token_ids, loss_mask=thoughts != PAD)
