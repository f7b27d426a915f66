"""Which implementation runs: the one asked for, or the fastest that can run these arrays on this device.

Called by `_api` with validated arguments. Every implementation is a module with the same three functions (`_xla` needs
no `unsupported`); a module is imported when it is first wanted. `tuning` is a frozen dataclass of that module, or None:

    block_topk_decode(q, key_pages, value_pages, probe, summaries, page_table, lengths, *, num_blocks, num_sink_blocks,
                      num_local_blocks, scale, tuning) -> out [B, N, H], lse [B, N], selected [B, K, J]
    paged_decode(q, key_pages, value_pages, page_table, lengths, *, scale, window_len, sink_len, tuning)
                      -> out [B, N, H], lse [B, N]
    unsupported(q, key_pages, page_table, *, summaries=None, num_blocks=None, window_len=None, sink_len=0)
                      -> why it cannot run that, one sentence with the way out; None where it can

`append_kv` and `rotate_and_append_kv`, of the arrays of the public functions in their order, are a module's to have or
not; with them `unsupported_append(q or keys, key_pages, page_table)`.
With quantised pages come `key_scales`, `value_scales` [R, K, P], as keywords.
`summaries` and `num_blocks` are given for `block_topk_decode`, the window for `paged_decode`. `num_blocks` < M always:
a budget that covers the table is the dense decode.
"""

import importlib
import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from . import _xla
from ._interpret import is_interpreted
from ._quantise import is_quantised
from ._validate import Implementation
from ._vmap import fold_into_batch

# Implementation: the platform that lowers it.
_PLATFORMS = {"mosaic_tpu": "tpu", "mosaic_gpu": "cuda", "triton": "cuda"}
_HOPPER = 9  # major compute capability
# In tables of more pages, all sequences together, Mosaic GPU selected faster than Triton on an H100 (docs/kernels.md).
_MANY_PAGES = 32_768

_TARGET = jax.make_user_context(None)


@contextmanager
def targeting(platform: str) -> Iterator[None]:
    """Choose as on a machine with this device ("tpu", "cuda", "cpu"), to compile ahead of time on another."""
    with _TARGET(platform):
        yield


class _Call(NamedTuple):
    """Name a function of the modules and all that it is called with but arrays.

    Attributes:
        function: Its name.
        options: Keywords.
        num_arrays: Arrays by position; scales follow.
        pools: Which of them hold pages; so do scales.
        page_table: Which of them holds page ids.
    """

    function: str
    options: tuple[tuple[str, Any], ...]
    num_arrays: int
    pools: tuple[int, ...]
    page_table: int

    def __call__(self, module: ModuleType, *arrays: Array) -> tuple[Array, ...]:
        scales = _by_name(arrays[self.num_arrays :])
        return getattr(module, self.function)(*arrays[: self.num_arrays], **scales, **dict(self.options))


def block_topk_decode(
    name: Implementation | None,
    arrays: tuple[Array, ...],
    scales: tuple[Array, ...],
    tuning: Any,
    *,
    scale: float | None,
    **counts: int,
) -> tuple[Array, Array, Array]:
    """Run `block_topk_decode` of the named implementation, or of the best one; arrays in the order of the module."""
    q, key_pages, _, _, summaries, page_table, _ = arrays
    asked = {"summaries": summaries, "num_blocks": counts["num_blocks"]}
    best = _choose(name, tuning, (q, key_pages, page_table), asked)
    options = {"scale": _logit_scale(q, scale), "tuning": tuning, **counts}
    call = _Call("block_topk_decode", tuple(options.items()), num_arrays=7, pools=(1, 2, 4), page_table=5)
    out, lse, selected = _run(call, best, name is not None, (*arrays, *scales))
    return out, lse, selected


def paged_decode(
    name: Implementation | None,
    arrays: tuple[Array, ...],
    scales: tuple[Array, ...],
    tuning: Any,
    *,
    scale: float | None,
    window_len: int | None = None,
    sink_len: int = 0,
    token_mask: Array | None = None,
) -> tuple[Array, Array]:
    """Run `paged_decode` of the named implementation, or of the best one; only XLA's takes a mask of tokens."""
    q, key_pages, _, page_table, _ = arrays
    asked = {"window_len": window_len, "sink_len": sink_len}
    options = {"scale": _logit_scale(q, scale), **asked}
    if token_mask is not None:
        if name not in (None, "xla"):
            raise NotImplementedError(f"implementation {name!r} takes no token_mask. Use 'xla', or None to choose")
        return _xla.paged_decode(*arrays, **_by_name(scales), token_mask=token_mask, **options)
    best = _choose(name, tuning, (q, key_pages, page_table), asked)
    options["tuning"] = tuning
    call = _Call("paged_decode", tuple(options.items()), num_arrays=5, pools=(1, 2), page_table=3)
    out, lse = _run(call, best, name is not None, (*arrays, *scales))
    return out, lse


def append(name: Implementation | None, function: str, arrays: tuple[Array, ...], **options: Any) -> tuple[Array, ...]:
    """Run `append_kv` or `rotate_and_append_kv` of the named implementation, or of the best one; few have them."""
    key_pages, page_table = arrays[0], arrays[3]
    order: tuple[Implementation, ...] = (*_by_speed(key_pages, page_table, None), "xla") if name is None else (name,)
    reasons = [_cannot_append(best, function, arrays) for best in order]
    if None not in reasons:
        raise NotImplementedError(reasons[0])
    best = order[reasons.index(None)]
    module = None if best == "xla" else _load(best)
    return _append_on(function, tuple(options.items()), module, None if name else _PLATFORMS.get(best), *arrays)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _append_on(
    function: str, options: tuple[tuple[str, Any], ...], module: Any, platform: str | None, *arrays: Array
) -> tuple[Array, ...]:
    """Run it; where it is lowered for another platform, or under `vmap`, XLA's."""
    by_xla = partial(getattr(_xla, function), **dict(options))
    if module is None:
        return by_xla(*arrays)
    kernel = jax.custom_batching.custom_vmap(partial(getattr(module, function), **dict(options)))

    @kernel.def_vmap
    def rule(axis_size: int, in_batched: list[bool], *arrays: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        mapped = jax.vmap(by_xla, [0 if batched else None for batched in in_batched], axis_size=axis_size)(*arrays)
        return mapped, (True,) * len(mapped)

    if platform is None:
        return kernel(*arrays)
    return jax.lax.platform_dependent(*arrays, **{platform: kernel}, default=by_xla)


def _by_name(scales: tuple[Array, ...]) -> dict[str, Array]:
    """Return the scales as keywords; none for pages that are not quantised."""
    return dict(zip(("key_scales", "value_scales"), scales, strict=False))


def _logit_scale(q: Array, scale: float | None) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale


def _choose(
    name: Implementation | None, tuning: Any, shapes: tuple[Array, Array, Array], asked: dict[str, Any]
) -> Implementation:
    """Return the implementation to run: the named one, or the fastest that runs here; "xla" runs everywhere.

    Raises:
        NotImplementedError: If the named implementation cannot run this.
        ValueError: If there is a setting that no implementation was named for.
    """
    if tuning is not None and name in (None, "xla"):
        raise ValueError(
            f"tuning belongs to one Pallas implementation; got implementation={name!r}. Name it, or drop it"
        )
    if name is not None:
        reason = _unsupported(name, shapes, asked)
        if reason is not None:
            raise NotImplementedError(reason)
        return name
    order: tuple[Implementation, ...] = (*_by_speed(*shapes[1:], asked.get("num_blocks")), "xla")
    return next(best for best in order if _unsupported(best, shapes, asked) is None)


def _unsupported(name: Implementation, shapes: tuple[Array, Array, Array], asked: dict[str, Any]) -> str | None:
    if name == "xla":
        return None
    found = _find(name)
    return found if isinstance(found, str) else found.unsupported(*shapes, **asked)


def _cannot_append(name: Implementation, function: str, arrays: tuple[Array, ...]) -> str | None:
    if name == "xla":
        return None
    module = _load(name)
    if module is not None and not hasattr(module, function):
        return f"{function} has no implementation {name!r}. Use 'xla', or None to choose"
    found = _find(name)
    key_pages, page_table, first_heads = arrays[0], arrays[3], arrays[5]
    return found if isinstance(found, str) else found.unsupported_append(first_heads, key_pages, page_table)


def _find(name: Implementation) -> ModuleType | str:
    """Return the module of an implementation, or why it is not here."""
    module, platform = _load(name), _platform()
    if module is None:
        return f"implementation {name!r} does not exist in this version with jax {jax.__version__}. Use 'xla', or None"
    if not is_interpreted() and platform != _PLATFORMS[name]:
        return f"implementation {name!r} runs on {_PLATFORMS[name]}; got {platform}. Use 'xla', or None to choose"
    return module


def _run(call: _Call, best: Implementation, is_named: bool, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    return _run_on(call, _xla if best == "xla" else _load(best), None if is_named else _PLATFORMS.get(best), arrays)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run_on(call: _Call, module: Any, platform: str | None, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Run it; where it is lowered for another platform, XLA's.

    Under `jit`, so that all layers of a model share what is traced and lowered: seconds for each kernel.
    """
    if module is _xla:
        return call(_xla, *arrays)
    pools = (*call.pools, *range(call.num_arrays, len(arrays)))
    kernel = fold_into_batch(partial(call, module), pools=pools, page_table=call.page_table)
    if platform is None:
        return kernel(*arrays)
    # A machine with an accelerator may still run this on its CPU: only the lowering knows.
    return jax.lax.platform_dependent(*arrays, **{platform: kernel}, default=partial(call, _xla))


def _by_speed(key_pages: Array, page_table: Array, num_blocks: int | None) -> tuple[Implementation, ...]:
    """Return the implementations made for this device, the fastest first."""
    platform = _platform()
    if _is_divided_by_xla():
        return ()
    if platform == "tpu":
        return ("mosaic_tpu",)
    if platform == "cuda":
        if _capability() != _HOPPER:
            return ("triton",)
        selects_among_many = num_blocks is not None and page_table.size > _MANY_PAGES
        return ("mosaic_gpu", "triton") if selects_among_many or is_quantised(key_pages) else ("triton", "mosaic_gpu")
    return ()


def _is_divided_by_xla() -> bool:
    """Return whether a mesh has axes that `shard_map` left to XLA, which cannot divide a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    return set(mesh.manual_axes) != set(mesh.axis_names) and (mesh.size > 1 or bool(mesh.manual_axes))


def _platform() -> str:
    backend = _TARGET.value or jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def _capability() -> int:
    """Return the major compute capability of the GPU that is here, or aimed at."""
    if _TARGET.value is not None:
        return _HOPPER
    # AMD devices name an architecture ("gfx942"): no capability, so the oldest.
    major = str(getattr(jax.local_devices()[0], "compute_capability", "0.0")).split(".")[0]
    return int(major) if major.isdigit() else 0


def _load(name: Implementation) -> ModuleType | None:
    """Import the module of an implementation; None where it, or what it needs of JAX, does not exist."""
    module = f"{__package__}._{name}"
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
