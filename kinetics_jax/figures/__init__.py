"""Show it: prices and results in, a PNG and the CSV it was drawn from out. No display and no global state needed."""

from ._breakdown import cost_breakdown as cost_breakdown
from ._frontiers import best_of_n_frontier as best_of_n_frontier
from ._frontiers import long_cot_frontier as long_cot_frontier
from ._gaps import dense_vs_sparse as dense_vs_sparse
from ._iso_cost import iso_cost_contours as iso_cost_contours
from ._kv_growth import kv_per_token as kv_per_token
from ._laws import law_bands as law_bands
from ._methods import methods_compared as methods_compared
from ._phi_by_len import phi_by_len as phi_by_len
