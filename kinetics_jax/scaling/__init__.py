"""What is the best use of a budget? Candidates, Algorithms 1 and 2 cross-fitted, frontiers, bands and power laws."""

from ._allocate import allocate as allocate
from ._allocate import model_frontiers as model_frontiers
from ._allocation import Allocation as Allocation
from ._bands import Band as Band
from ._bands import LawComparison as LawComparison
from ._bands import model_bands as model_bands
from ._bands import wrong_law_cost as wrong_law_cost
from ._frontier import cost_to_reach as cost_to_reach
from ._frontier import pareto_frontier as pareto_frontier
from ._gaps import Gap as Gap
from ._gaps import widest_gap as widest_gap
from ._methods import MethodPoint as MethodPoint
from ._methods import PairedGain as PairedGain
from ._methods import accuracy_by_budget as accuracy_by_budget
from ._methods import paired_gain as paired_gain
from ._power_law import PowerLaw as PowerLaw
from ._power_law import fit_power_law as fit_power_law
from ._table import tradeoff_table as tradeoff_table
from ._tradeoff import Candidate as Candidate
from ._tradeoff import Tradeoff as Tradeoff
