"""Made-up traces on disk for commands that compute on them."""

import numpy as np

from kinetics_jax.traces import Trace
from tests.scaling.synthetic import synthetic_tables

MODELS_HERE = ("Kinetics-Mini-0.1M", "Kinetics-Mini-0.6M")


def traces_of(
    task: str = "pathfind",
    models: tuple[str, ...] = MODELS_HERE,
    attentions: tuple[str, ...] = ("dense", "topk:64"),
) -> list[Trace]:
    """Return made-up traces, 6 problems with 4 trials each."""
    tables = synthetic_tables(models=models, attentions=attentions, num_problems=6, num_trials=4)
    return [
        Trace(
            run=f"{table.model}/{table.attention}/{task}",
            model=table.model,
            weights_hash="c0ffee",
            task=task,
            problem=problem,
            difficulty=int(table.difficulty[q]),
            trial=r,
            seed=0,
            attention=table.attention,
            sampling="SamplingSpec()",
            max_gen_len=table.max_gen_len,
            prompt_ids=(1,) * int(table.prompt_len[q]),
            output_ids=(2,) * int(table.gen_len[q, r]),
            finish_reason="eos" if table.gen_len[q, r] < table.max_gen_len else "length",
            answer="x" if is_right else None,
            score=float(is_right),
            solved_len=int(table.solved_len[q, r]) if is_right else None,
            time_s=0.1,
        )
        for table in tables
        for q, problem in enumerate(table.problems)
        for r, is_right in enumerate(np.isfinite(table.solved_len[q]).tolist())
    ]
