"""A documented generator of trace tables shaped like the recorded ones, for tests of scaling and of figures."""

import math

import numpy as np

from kinetics_jax.specs import MODELS, Dense, Local, parse_attention
from kinetics_jax.traces import TraceTable

MODEL_NAMES = tuple(name for name, spec in MODELS.items() if spec.family == "Kinetics-Mini")
BUDGETS = (16, 32, 64, 128, 256)
ATTENTIONS = (
    "dense",
    *(f"topk:{budget}" for budget in BUDGETS),
    *(f"block_topk:8x{budget // 8}" for budget in BUDGETS),
    *(f"local:{budget}" for budget in BUDGETS),
)
DIFFICULTIES = (2, 3, 4, 5, 6)


def synthetic_tables(
    *,
    models: tuple[str, ...] = MODEL_NAMES,
    attentions: tuple[str, ...] = ATTENTIONS,
    num_problems: int = 64,
    num_trials: int = 16,
    max_gen_len: int = 256,
    seed: int = 0,
) -> list[TraceTable]:
    """Draw one table a (model, attention) from a known law.

    A trial is a series of attempts of `difficulty + 2` tokens. Each succeeds with probability
    p = sigmoid(skill - difficulty + problem effect) * (share of the retrieval kept), where skill is
    0.9 log2(parameters / 1e6) + 1.5 and a sparse method with budget B keeps B / (B + c) of it (c = 12 for top-k, 30 for
    block top-k; local attention keeps 1% until its window covers the 198 tokens of the prompt). A trial stops at its
    first success, or gives up with a wrong answer (EOS) at 1% an attempt, or runs into the limit.
    """
    rng = np.random.default_rng(seed)
    difficulty = np.array([DIFFICULTIES[q % len(DIFFICULTIES)] for q in range(num_problems)])
    prompt_len = rng.integers(194, 203, size=num_problems)
    effect = rng.normal(0, 0.8, size=num_problems)
    tables = []
    for model in models:
        skill = 0.9 * math.log2(MODELS[model].num_params / 1e6) + 1.5
        for attention in attentions:
            success_Q1 = (_kept(attention) / (1 + np.exp(difficulty - skill - effect)))[:, None]
            shape = (num_problems, num_trials)
            attempts = rng.geometric(np.clip(success_Q1, 1e-9, 1.0), size=shape).astype(float)
            give_up = rng.geometric(0.01, size=shape).astype(float)
            needed = np.minimum(attempts, give_up) * (difficulty + 2)[:, None]
            right = (attempts <= give_up) & (needed <= max_gen_len)
            tables.append(
                TraceTable(
                    model=model,
                    attention=attention,
                    task="pathfind",
                    max_gen_len=max_gen_len,
                    problems=tuple(f"graph-{q:02d}" for q in range(num_problems)),
                    difficulty=difficulty.astype(np.int32),
                    prompt_len=prompt_len.astype(np.int32),
                    gen_len=np.minimum(needed, max_gen_len).astype(np.int32),
                    solved_len=np.where(right, needed, np.inf),
                    mask=np.ones(shape, dtype=bool),
                )
            )
    return tables


def _kept(attention: str) -> float:
    spec = parse_attention(attention)
    if isinstance(spec, Dense):
        return 1.0
    if isinstance(spec, Local):
        return 1.0 if spec.budget_len >= 198 else 0.01
    return spec.budget_len / (spec.budget_len + (12 if attention.startswith("topk") else 30))
