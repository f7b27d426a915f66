"""How do I read few KV blocks fast? Decode attention over a paged KV cache. Imports jax only."""

from ._api import append_kv as append_kv
from ._api import block_topk_decode as block_topk_decode
from ._api import choose_pages as choose_pages
from ._api import gather_pages as gather_pages
from ._api import page_means as page_means
from ._api import paged_decode as paged_decode
from ._validate import Implementation as Implementation
