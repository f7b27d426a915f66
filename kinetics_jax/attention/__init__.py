"""Which cache entries are read? Runs an attention spec on a paged KV cache, a decode step or a prompt at a time."""

from pallas_kernels import rms_norm as rms_norm

from ._cache import PagedCache as PagedCache
from ._cache import advance as advance
from ._cache import init_cache as init_cache
from ._cache import init_shared_cache as init_shared_cache
from ._decode import decode_attention as decode_attention
from ._extend import append_tokens as append_tokens
from ._extend import extend_attention as extend_attention
from ._mesh import DATA_AXIS as DATA_AXIS
from ._mesh import MODEL_AXIS as MODEL_AXIS
from ._mesh import checked_mesh as checked_mesh
from ._mesh import kv_head_axis as kv_head_axis
from ._mesh import place_kv as place_kv
from ._pool import SCRATCH_PAGE as SCRATCH_PAGE
from ._pool import PagePool as PagePool
from ._pool import PrefixCache as PrefixCache
from ._prefill import causal_attention as causal_attention
from ._rotation import Rotation as Rotation
from ._sharding import cache_shardings as cache_shardings
from ._write import copy_pages as copy_pages
from ._write import rotate_and_append as rotate_and_append
from ._write import write_prompt as write_prompt
