"""How far are these logits from those? One record of four numbers, for int8 weights and for `verify`."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True, kw_only=True)
class LogitError:
    """Describe how logits differ from a reference.

    Attributes:
        max_abs: Largest difference of two logits.
        mean_abs: Mean difference.
        kl_nats: Mean over positions of KL(reference | logits), of the distributions at temperature 1 [nats].
        top1_agreement: Share of positions at which both prefer the same token.
        num_positions: Positions compared.
    """

    max_abs: float
    mean_abs: float
    kl_nats: float
    top1_agreement: float
    num_positions: int

    def __str__(self) -> str:
        return (
            f"logits differ by {self.max_abs:.3g} at most and {self.mean_abs:.3g} on average; "
            f"KL {self.kl_nats:.2g} nats; "
            f"the best token is the same at {self.top1_agreement:.1%} of {self.num_positions} positions"
        )


def logit_error(
    reference_logits: Float[Array | np.ndarray, "*batch V"], logits: Float[Array | np.ndarray, "..."]
) -> LogitError:
    """Compare logits with a reference, in float64.

    Args:
        reference_logits: What they should be [..., V].
        logits: What they are [..., V].

    Returns:
        The errors; NaN where a logit is not finite.

    Raises:
        ValueError: If the shapes differ or hold no position.

    Example:
        >>> error = logit_error(np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([[0.0, 1.0], [0.5, 1.0]]))
        >>> error.max_abs, error.mean_abs, error.top1_agreement, round(error.kl_nats, 3)
        (1.5, 0.625, 0.5, 0.275)
    """
    wanted, got = np.asarray(reference_logits, np.float64), np.asarray(logits, np.float64)
    if wanted.shape != got.shape or wanted.size == 0:
        raise ValueError(
            f"logits must have the shape of the reference and a position; got {got.shape} for {wanted.shape}"
        )
    wanted, got = (rows.reshape(-1, rows.shape[-1]) for rows in (wanted, got))
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and says so
        difference = np.abs(wanted - got)
        log_p, log_q = _log_softmax(wanted), _log_softmax(got)
        divergence = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    return LogitError(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        kl_nats=float(divergence.mean()),
        top1_agreement=float(np.mean(wanted.argmax(axis=-1) == got.argmax(axis=-1))),
        num_positions=len(wanted),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
