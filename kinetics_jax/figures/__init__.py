"""Show it: prices and results in, a PNG, an SVG and the CSV they were drawn from out. No display, no global state."""

from ._adaptive import adaptive_policy as adaptive_policy
from ._all import FigureReport as FigureReport
from ._all import check_figure_names as check_figure_names
from ._all import draw_all as draw_all
from ._all import figure_names as figure_names
from ._breakdown import cost_breakdown as cost_breakdown
from ._frontiers import best_of_n_frontier as best_of_n_frontier
from ._frontiers import long_cot_frontier as long_cot_frontier
from ._gaps import dense_vs_sparse as dense_vs_sparse
from ._growth import GrowthQuantity as GrowthQuantity
from ._growth import growth_with_cost as growth_with_cost
from ._iso_cost import iso_cost_contours as iso_cost_contours
from ._kv_growth import kv_per_token as kv_per_token
from ._laws import law_bands as law_bands
from ._length_trials import length_vs_trials as length_vs_trials
from ._methods import methods_compared as methods_compared
from ._optimum import optimum_with_cost as optimum_with_cost
from ._phi_by_len import phi_by_len as phi_by_len
from ._style import CannotWriteError as CannotWriteError
from ._surface_fit import surface_fit as surface_fit
from ._tangency import tangency as tangency
from ._throughput import ThroughputRow as ThroughputRow
from ._throughput import throughput as throughput
from ._throughput import throughput_rows as throughput_rows
