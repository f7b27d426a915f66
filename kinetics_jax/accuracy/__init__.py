"""How good are R trials? Arrays in, arrays out: pass@k, accuracy within a length, and how far to trust either.

`scaling` is the main caller. Choosing a configuration by these numbers, and the bias of doing so, live there.
"""

from ._at_len import accuracy_at_len as accuracy_at_len
from ._at_len import coverage_at_len as coverage_at_len
from ._at_len import num_solved_at_len as num_solved_at_len
from ._bootstrap import Interval as Interval
from ._bootstrap import bootstrap_interval as bootstrap_interval
from ._pass_at_k import pass_at_k as pass_at_k
