"""What does it cost? Prices a request in FLOPs, bytes and eFLOPs; pure, differentiable, without flax or pallas."""

from ._break_even import break_even_batch as break_even_batch
from ._capacity import Capacity as Capacity
from ._capacity import capacity as capacity
from ._cost import Cost as Cost
from ._eflops import Combine as Combine
from ._eflops import eflops as eflops
from ._elasticity import elasticity as elasticity
from ._entries import entries_read as entries_read
from ._entries import entries_searched as entries_searched
from ._expected import CostEstimate as CostEstimate
from ._expected import bootstrap_cost as bootstrap_cost
from ._expected import expected_cost as expected_cost
from ._iso_cost import iso_cost_len as iso_cost_len
from ._phi import break_even_budget_len as break_even_budget_len
from ._phi import phi as phi
from ._prefill import prefill_cost as prefill_cost
from ._request import request_cost as request_cost
from ._resources import dollars as dollars
from ._resources import joules as joules
from ._resources import seconds as seconds
from ._serving import Throughput as Throughput
from ._serving import decode_step_s as decode_step_s
from ._serving import throughput as throughput
from ._speculative import speculative_cost as speculative_cost
from ._tariff import Convention as Convention
