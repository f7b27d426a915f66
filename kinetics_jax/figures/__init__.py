"""Show it: scaling results in, a PNG and the CSV it was drawn from out. No display and no global state needed."""

from ._frontiers import best_of_n_frontier as best_of_n_frontier
from ._frontiers import long_cot_frontier as long_cot_frontier
from ._gaps import dense_vs_sparse as dense_vs_sparse
from ._kv_growth import kv_per_token as kv_per_token
from ._laws import law_bands as law_bands
from ._methods import methods_compared as methods_compared
