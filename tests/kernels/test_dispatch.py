"""Which implementation runs: None never fails, a name never falls back; `vmap` makes one call of a larger batch."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import _dispatch, _xla, append_kv, block_topk_decode, paged_decode, rotate_and_append_kv
from pallas_kernels._interpret import gpu_params, interpreted, tpu_params
from tests.kernels.cases import TINY, Case, Layout, make_case

CASE = make_case([5, 9, 0])
DENSE = CASE.arguments("paged_decode")


class Fake(types.ModuleType):
    """A Pallas implementation by XLA's means: takes no batch axis beside its own, and notes what it is asked."""

    def __init__(self, refuses: str | None = None):
        super().__init__("fake")
        self.refuses, self.asked, self.shapes, self.tunings = refuses, {}, [], []

    def unsupported(self, q, key_pages, page_table, **asked):
        self.asked = {name: getattr(value, "shape", value) for name, value in asked.items()}
        return self.refuses

    def paged_decode(self, q, key_pages, value_pages, page_table, lengths, *, tuning, **options):
        self._note(q, key_pages, page_table, tuning)
        return _xla.paged_decode(q, key_pages, value_pages, page_table, lengths, **options)

    def block_topk_decode(self, q, key_pages, *rest, tuning, **options):
        self._note(q, key_pages, rest[3], tuning)
        return _xla.block_topk_decode(q, key_pages, *rest, **options)

    def _note(self, q, key_pages, page_table, tuning):
        assert (q.ndim, key_pages.ndim, page_table.ndim) == (3, 4, 2)
        self.shapes.append((q.shape[0], key_pages.shape[0]))
        self.tunings.append(tuning)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake()
    monkeypatch.setattr(_dispatch, "_load", lambda name: None if name == "triton" else module)
    return module


@pytest.mark.parametrize(
    ("platform", "capability", "mesh_axes", "wanted"),
    [
        ("cpu", None, {}, ()),
        ("tpu", None, {}, ("mosaic_tpu",)),
        ("gpu", "9.0", {}, ("triton", "mosaic_gpu")),
        ("gpu", "10.3", {}, ("triton",)),
        ("gpu", "8.6", {}, ("triton",)),
        ("gpu", "gfx942", {}, ("triton",)),
        ("tpu", None, {"x": 2}, ()),
        ("tpu", None, {"x": 1}, ("mosaic_tpu",)),
    ],
)
def test_the_fastest_for_the_device(monkeypatch, platform, capability, mesh_axes, wanted):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    mesh = jax.sharding.AbstractMesh(tuple(mesh_axes.values()), tuple(mesh_axes))
    with jax.sharding.use_abstract_mesh(mesh):
        assert _dispatch._by_speed(CASE.key_pages, CASE.page_table, 2) == wanted


@pytest.mark.parametrize(
    ("table_shape", "num_blocks", "page_dtype", "first"),
    [
        ((32, 1024), 64, "bfloat16", "triton"),
        ((33, 1024), 64, "bfloat16", "mosaic_gpu"),
        ((64, 1024), None, "bfloat16", "triton"),
        ((1, 1024), None, "int8", "mosaic_gpu"),
    ],
)
def test_hopper_chooses_by_what_is_read(table_shape, num_blocks, page_dtype, first):
    pages, table = jnp.zeros((1, 8, 16, 128), page_dtype), jnp.zeros(table_shape, "int32")
    with _dispatch.targeting("cuda"):
        order = _dispatch._by_speed(pages, table, num_blocks)
    assert order[0] == first
    assert set(order) == {"triton", "mosaic_gpu"}


def test_no_name_takes_the_fastest_that_can_run_this(fake):
    wanted = jax.jit(partial(paged_decode, implementation="xla"))(*DENSE)
    with _dispatch.targeting("tpu"):
        # Chosen when it is lowered: here for a CPU after all.
        np.testing.assert_array_equal(jax.jit(paged_decode)(*DENSE), wanted)
        assert fake.shapes == [(3, 21)]
        assert fake.asked == {"window_len": None, "sink_len": 0}
        fake.refuses = "no"
        np.testing.assert_array_equal(jax.jit(partial(paged_decode))(*DENSE), wanted)
        assert len(fake.shapes) == 1
        jax.eval_shape(paged_decode, *DENSE, token_mask=jnp.ones((3, 2, 24), bool))
        assert len(fake.shapes) == 1
    with _dispatch.targeting("cuda"):
        fake.refuses = None
        jax.eval_shape(
            lambda *arguments: block_topk_decode(*arguments, num_blocks=2), *CASE.arguments("block_topk_decode")
        )
        assert len(fake.shapes) == 2
        assert fake.asked == {"summaries": (21, 2, 8), "num_blocks": 2}


def test_on_hopper_triton_comes_before_xla(monkeypatch):
    modules = {"mosaic_gpu": Fake("no"), "triton": Fake()}
    monkeypatch.setattr(_dispatch, "_load", modules.get)
    case = make_case([5, 9, 0], Layout(4, 2, 3, 8, "float32", "int8"))
    with _dispatch.targeting("cuda"):
        jax.eval_shape(partial(paged_decode, window_len=3), *DENSE)
        jax.eval_shape(partial(block_topk_decode, num_blocks=2), *case.arguments("block_topk_decode"), **case.scales)
        assert modules["mosaic_gpu"].asked == modules["triton"].asked == {"summaries": (21, 2, 8), "num_blocks": 2}
        assert modules["triton"].shapes == [(3, 21)] * 2
        modules["triton"].refuses = "no"
        assert jax.eval_shape(paged_decode, *DENSE).shape == (3, 6, 8)
    assert (modules["mosaic_gpu"].shapes, modules["triton"].shapes) == ([], [(3, 21)] * 2)


def test_a_named_implementation_never_falls_back(fake):
    with pytest.raises(NotImplementedError, match=r"'mosaic_tpu' runs on tpu; got (cpu|cuda). Use 'xla'"):
        paged_decode(*DENSE, implementation="mosaic_tpu")
    with pytest.raises(NotImplementedError, match=r"'triton' does not exist in this version with jax .* Use 'xla'"):
        block_topk_decode(*CASE.arguments("block_topk_decode"), num_blocks=2, implementation="triton")
    with interpreted():
        fake.refuses = "head_dim must be even"
        with pytest.raises(NotImplementedError, match="head_dim must be even"):
            paged_decode(*DENSE, implementation="mosaic_gpu")
        with pytest.raises(NotImplementedError, match="'mosaic_gpu' takes no token_mask"):
            paged_decode(*DENSE, token_mask=jnp.ones((3, 2, 24), bool), implementation="mosaic_gpu")
    pools, token = (CASE.key_pages, CASE.value_pages, CASE.key_means), CASE.key_means[:3]
    with pytest.raises(NotImplementedError, match=r"append_kv has no implementation 'mosaic_gpu'\. Use 'xla'"):
        append_kv(*pools, CASE.page_table, CASE.lengths, token, token, implementation="mosaic_gpu")
    heads, angles = (CASE.q, token, token), (jnp.ones((3, 4)),) * 2
    with pytest.raises(NotImplementedError, match="rotate_and_append_kv has no implementation 'mosaic_gpu'"):
        rotate_and_append_kv(*pools, CASE.page_table, CASE.lengths, *heads, *angles, implementation="mosaic_gpu")
    assert not fake.shapes


def test_settings_reach_the_implementation_they_belong_to(fake):
    with interpreted():
        jax.eval_shape(lambda *arguments: paged_decode(*arguments, implementation="mosaic_tpu", tuning="fast"), *DENSE)
    assert fake.tunings == ["fast"]
    for name in (None, "xla"):
        with pytest.raises(
            ValueError, match=f"tuning belongs to one Pallas implementation; got implementation={name!r}"
        ):
            paged_decode(*DENSE, implementation=name, tuning="fast")


def test_a_budget_over_the_table_asks_for_the_dense_decode(fake):
    def decode(*arguments):
        return block_topk_decode(*arguments, num_blocks=6, implementation="mosaic_tpu", return_residuals=True)

    with interpreted():
        shapes = jax.eval_shape(decode, *CASE.arguments("block_topk_decode"))
    assert fake.asked == {"window_len": None, "sink_len": 0}
    assert [leaf.shape for leaf in shapes] == [(3, 6, 8), (3, 6), (3, 2, 6)]


def test_the_switch_is_part_of_the_key_of_jit():
    traces = []

    @jax.jit
    def traced(x):
        traces.append(bool(tpu_params()))
        return x

    traced(1.0)
    with interpreted():
        traced(1.0)
    traced(1.0)
    assert traces == [False, True]
    assert not gpu_params()


def stack(layout: Layout) -> Case:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(make_case([5, 24, 17], layout, seed=i) for i in range(4)))


STACKED, QUANTISED = stack(TINY), stack(TINY._replace(page_dtype="int8"))
SHARED = {"key_pages", "value_pages", "key_means", "key_bounds", "key_scales", "value_scales"}


def axes(*mapped: str) -> Case:
    return Case(**{name: 0 if name in mapped else None for name in Case._fields})


@pytest.mark.parametrize(
    ("whole", "mapped", "shape"),
    [
        (QUANTISED, set(Case._fields), (12, 84)),
        (STACKED, set(Case._fields) - SHARED, (12, 21)),
        (QUANTISED, {"q"}, (12, 21)),
        (STACKED, {"page_table", "key_means"}, (12, 84)),
    ],
    ids=lambda part: "+".join(sorted(part)) if isinstance(part, set) else "",
)
def test_vmap_is_one_call_of_a_larger_batch(fake, whole, mapped, shape):
    first = jax.tree.map(lambda leaf: leaf[0], whole)
    case = first._replace(**{name: getattr(whole, name) for name in mapped})

    def decode(case, implementation):
        counts = {"num_blocks": 3, "implementation": implementation, "return_residuals": True}
        return block_topk_decode(*case.arguments("block_topk_decode"), **case.scales, **counts)

    with interpreted():
        got = jax.jit(jax.vmap(lambda case: decode(case, "mosaic_tpu"), in_axes=(axes(*mapped),)))(case)
    assert fake.shapes[-1] == shape
    wanted = jax.jit(jax.vmap(lambda case: decode(case, "xla"), in_axes=(axes(*mapped),)))(case)
    for left, right in zip(got, wanted, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_nested_vmap_folds_every_axis(fake):
    nested = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), STACKED)

    def decode(q, table, lengths, keys, values):
        return paged_decode(q, keys, values, table, lengths, implementation="mosaic_gpu")

    arguments = (nested.q, nested.page_table, nested.lengths, nested.key_pages[0], nested.value_pages[0])
    # Outside the queries only: both rows read the pools that the inside maps. An axis need not be the first.
    inside = jax.vmap(decode, in_axes=(1, 0, 0, 0, 0))
    outside = jax.vmap(inside, in_axes=(0, 0, 0, None, None))
    with interpreted():
        got = jax.jit(outside)(jnp.swapaxes(arguments[0], 1, 2), *arguments[1:])
    # The inner axis folds first, pools and all; the outer one finds them unmapped.
    assert fake.shapes[-1] == (12, 42)
    plain = jax.jit(lambda *one: paged_decode(*one, implementation="xla"))
    for i in range(2):
        for j in range(2):
            wanted = plain(
                nested.q[i, j],
                nested.key_pages[0, j],
                nested.value_pages[0, j],
                nested.page_table[i, j],
                nested.lengths[i, j],
            )
            np.testing.assert_allclose(got[i, j], wanted, atol=1e-6)


def test_vmap_of_xla_equals_a_loop():
    decode = jax.jit(lambda case: block_topk_decode(*case.arguments("block_topk_decode"), num_blocks=3))
    mapped = jax.jit(jax.vmap(decode))(STACKED)
    for i in range(4):
        wanted = decode(jax.tree.map(lambda leaf, i=i: leaf[i], STACKED))
        np.testing.assert_allclose(mapped[i], wanted, atol=1e-6)


def test_an_id_out_of_range_never_reads_the_pool_of_another(fake):
    """Row 0 names page -1 and page R: mapped pools must not turn them into a page of row 1."""
    pools = jnp.stack([jnp.ones((2, 1, 2, 8)), jnp.full((2, 1, 2, 8), jnp.nan)])
    table = jnp.array([[[-1, 2]], [[0, 1]]])
    with interpreted():
        out = jax.jit(jax.vmap(partial(paged_decode, implementation="mosaic_tpu")))(
            jnp.ones((2, 1, 1, 8)), pools, pools, table, jnp.array([[4], [0]])
        )
    np.testing.assert_array_equal(out[0], 1.0)
