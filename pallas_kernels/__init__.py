"""How do I read few KV blocks fast? Decode attention over a paged KV cache. Imports jax only."""

from ._api import block_topk_decode as block_topk_decode
from ._api import quest_decode as quest_decode
from ._append import append_bounds as append_bounds
from ._append import append_kv as append_kv
from ._append import rotate_and_append_kv as rotate_and_append_kv
from ._debug import check_page_ids as check_page_ids
from ._dense import paged_decode as paged_decode
from ._heads import rms_norm as rms_norm
from ._heads import rotate as rotate
from ._merge import merge_partials as merge_partials
from ._pages import choose_pages as choose_pages
from ._pages import dequantise_pages as dequantise_pages
from ._pages import gather_pages as gather_pages
from ._pages import page_bounds as page_bounds
from ._pages import page_means as page_means
from ._pages import quantise_pages as quantise_pages
from ._results import BlockTopKResult as BlockTopKResult
from ._results import DecodeResult as DecodeResult
from ._validate import Implementation as Implementation
