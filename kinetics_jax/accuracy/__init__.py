"""How good are R trials? Arrays in, arrays out: pass@k, votes, verifiers, accuracy within a length, and error bars.

`scaling` is the main caller. Choosing a configuration by these numbers, and the bias of doing so, live there. What each
estimator is, and what it must not be used for: docs/accuracy.md.
"""

from ._at_len import accuracy_at_len as accuracy_at_len
from ._at_len import coverage_at_len as coverage_at_len
from ._at_len import num_solved_at_len as num_solved_at_len
from ._best_of_k import best_of_k as best_of_k
from ._best_of_k import oracle_gap as oracle_gap
from ._beta_binomial import BetaBinomial as BetaBinomial
from ._beta_binomial import Extrapolation as Extrapolation
from ._beta_binomial import fit_beta_binomial as fit_beta_binomial
from ._bootstrap import Interval as Interval
from ._bootstrap import bootstrap_interval as bootstrap_interval
from ._bootstrap import paired_difference as paired_difference
from ._majority import majority_at_k as majority_at_k
from ._pass_at_k import pass_at_k as pass_at_k
from ._plan import SamplePlan as SamplePlan
from ._plan import VarianceComponents as VarianceComponents
from ._plan import plan_samples as plan_samples
from ._plan import variance_components as variance_components
from ._wilson import accuracy_interval as accuracy_interval
