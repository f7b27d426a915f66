"""What does it cost? Prices a request in FLOPs, bytes and eFLOPs; pure, differentiable, without flax or pallas."""

from ._cost import Cost as Cost
from ._eflops import Combine as Combine
from ._eflops import eflops as eflops
from ._iso_cost import iso_cost_len as iso_cost_len
from ._phi import break_even_budget_len as break_even_budget_len
from ._phi import phi as phi
from ._request import entries_read as entries_read
from ._request import entries_searched as entries_searched
from ._request import expected_cost as expected_cost
from ._request import request_cost as request_cost
from ._tariff import Convention as Convention
