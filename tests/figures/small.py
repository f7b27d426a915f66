"""One small set of tables for all tests of this folder, so that they share what JAX compiles for its shapes."""

from dataclasses import replace

import numpy as np

from tests.scaling.synthetic import MODEL_NAMES, synthetic_tables

MODELS_HERE = MODEL_NAMES[1:3]
NUM_BUDGETS = 12
# Two strata are enough; they are equally large, so that one compilation serves both.
TABLES = [
    replace(table, difficulty=np.where(table.difficulty < 4, 2, 6))
    for table in synthetic_tables(
        models=MODELS_HERE,
        attentions=("dense", "block_topk:8x4", "block_topk:8x16", "topk:64"),
        num_problems=8,
        num_trials=8,
    )
]
