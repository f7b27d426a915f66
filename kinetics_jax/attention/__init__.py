"""Which cache entries are read? Runs an attention spec on a paged KV cache, a decode step or a prompt at a time."""

from ._cache import PagedCache as PagedCache
from ._cache import advance as advance
from ._cache import append as append
from ._cache import init_shared_cache as init_shared_cache
from ._cache import write_prompt as write_prompt
from ._decode import decode_attention as decode_attention
from ._prefill import causal_attention as causal_attention
