"""The published vectors: they are what the oracle makes, and our prices pass them, plain and compiled."""

import json
from collections import Counter
from fractions import Fraction
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cost import Cost, prefill_cost, request_cost
from kinetics_jax.specs import DTYPES, AttentionSpec, BlockTopK, Dense, Local, ModelSpec, Quest, TopK
from tests.cost.make_conformance import PATH, conformance, text_of
from tests.cost.step_sum import LEAVES

VECTORS = json.loads(PATH.read_text(encoding="utf-8"))
KINDS = {"dense": Dense, "topk": TopK, "block_topk": BlockTopK, "quest": Quest, "local": Local}
FLAGS = ("qk_norm", "qkv_bias", "gated_mlp", "has_biases", "tied_embeddings")
NUMBERS = ("prompt_len", "gen_len", "num_trials", "batch_size")


def model_of(geometry: dict[str, Any]) -> ModelSpec:
    flags = {name: bool(geometry[name]) for name in FLAGS}
    return ModelSpec(**{**geometry, **flags}, family="conformance", max_len=10**6)


def attention_of(method: dict[str, Any]) -> AttentionSpec:
    return KINDS[method["method"]](**{name: size for name, size in method.items() if name != "method"})


def bill_of(vector: dict[str, Any]) -> dict[str, float]:
    return {leaf: float(Fraction(vector["cost"][leaf])) for leaf in LEAVES}


def setting_of(vector: dict[str, Any]) -> str:
    """Name what is static under jit."""
    return json.dumps(
        {name: vector[name] for name in ("model", "attention", "kv_dtype", "weight_dtype", "share_prompt")}
    )


def options_of(vector: dict[str, Any]) -> dict[str, Any]:
    return {"kv_dtype": vector["kv_dtype"]["name"], "weight_dtype": vector["weight_dtype"]["name"]}


def test_the_file_is_what_the_generator_makes() -> None:
    assert PATH.read_text(encoding="utf-8") == text_of(conformance()), f"run {VECTORS['made_by']}"


def test_the_vectors_cover_the_domain() -> None:
    requests = VECTORS["request"]
    assert len(requests) >= 240
    methods = Counter(vector["attention"]["method"] for vector in requests)
    assert set(methods) == set(KINDS)
    assert {vector["kv_dtype"]["name"] for vector in requests} == set(DTYPES)
    assert {vector["weight_dtype"]["name"] for vector in requests} == set(DTYPES)
    assert {(v["attention"]["method"], v["share_prompt"]) for v in requests} >= {
        (kind, shared) for kind in ("topk", "block_topk", "quest", "local") for shared in (True, False)
    }
    groups = {vector["model"]["num_heads"] // vector["model"]["num_kv_heads"] for vector in requests}
    assert groups >= {1, 2, 4, 8, 16}
    for name in ("num_experts", "tied_embeddings", "qkv_bias", "has_biases"):
        assert {bool(vector["model"][name]) for vector in requests} == {True, False}, name
    assert {vector["batch_size"] is None for vector in requests} == {True, False}
    # The vectors would catch a term left out: each is neither always zero nor always the same.
    for leaf in LEAVES:
        assert len({vector["cost"][leaf] for vector in requests}) > 50, leaf


def test_numbers_are_whole_or_a_quotient_of_doubles() -> None:
    for vector in VECTORS["request"] + VECTORS["prefill"]:
        for term in vector["cost"].values():
            exact = Fraction(term)
            assert isinstance(term, int) == (exact.denominator == 1)
            assert max(exact.numerator, exact.denominator) < 10**300


def test_formats_are_ours() -> None:
    for vector in VECTORS["request"] + VECTORS["prefill"]:
        kv, weight = DTYPES[vector["kv_dtype"]["name"]], DTYPES[vector["weight_dtype"]["name"]]
        assert (kv.num_bits, kv.scale_bytes) == (vector["kv_dtype"]["num_bits"], vector["kv_dtype"]["scale_bytes"])
        assert weight.num_bits == vector["weight_dtype"]["num_bits"]


@pytest.mark.parametrize("kind", KINDS)
def test_request_cost_passes(kind: str) -> None:
    vectors = [vector for vector in VECTORS["request"] if vector["attention"]["method"] == kind]
    for vector in vectors:
        cost = request_cost(
            model_of(vector["model"]),
            attention_of(vector["attention"]),
            **{name: vector[name] for name in NUMBERS},
            share_prompt=vector["share_prompt"],
            **options_of(vector),
        )
        for leaf, wanted in bill_of(vector).items():
            assert getattr(cost, leaf) == pytest.approx(wanted, rel=1e-12, abs=0), (vector, leaf)


def test_prefill_cost_passes() -> None:
    for vector in VECTORS["prefill"]:
        cost = prefill_cost(
            model_of(vector["model"]),
            attention_of(vector["attention"]),
            **{name: vector[name] for name in ("prompt_len", "chunk_len", "batch_size")},
            **options_of(vector),
        )
        for leaf, wanted in bill_of(vector).items():
            assert getattr(cost, leaf) == pytest.approx(wanted, rel=1e-12, abs=0), (vector, leaf)


def grouped(vectors: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Put the vectors of one setting together: what differs within a group can be an array.

    Groups are filled up to one length, so that JAX compiles each operation once.
    """
    groups = [list(group) for _, group in groupby(sorted(vectors, key=setting_of), setting_of)]
    longest = max(map(len, groups))
    return [group + group[-1:] * (longest - len(group)) for group in groups]


def bills_in_jax(groups: list[list[dict[str, Any]]], *, compiled: bool) -> list[Cost]:
    """Price each group as arrays in float64."""
    columns = [
        {name: np.array([vector[name] for vector in group]) for name in NUMBERS if group[0][name] is not None}
        for group in groups
    ]

    def bills(columns: list[dict[str, Any]]) -> list[Cost]:
        return [
            request_cost(
                model_of(group[0]["model"]),
                attention_of(group[0]["attention"]),
                **numbers,
                share_prompt=group[0]["share_prompt"],
                **options_of(group[0]),
            )
            for group, numbers in zip(groups, columns, strict=True)
        ]

    with jax.enable_x64(True):
        return jax.jit(bills)(columns) if compiled else bills(jax.tree.map(jnp.asarray, columns))


def assert_bills(costs: list[Cost], groups: list[list[dict[str, Any]]]) -> None:
    for group, cost in zip(groups, costs, strict=True):
        for leaf in LEAVES:
            wanted = [bill_of(vector)[leaf] for vector in group]
            assert getattr(cost, leaf).dtype == np.float64
            np.testing.assert_allclose(getattr(cost, leaf), wanted, rtol=1e-9, atol=0, err_msg=leaf)


def test_request_cost_of_jax_arrays_passes() -> None:
    groups = grouped(VECTORS["request"])
    assert_bills(bills_in_jax(groups, compiled=False), groups)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_request_cost_passes(kind: str) -> None:
    """One program a method, with every other spec: compiling all 40 settings would take a minute."""
    groups = grouped([vector for vector in VECTORS["request"] if vector["attention"]["method"] == kind])
    some = list({json.dumps(group[0]["attention"]): group for group in groups}.values())[::2]
    assert_bills(bills_in_jax(some, compiled=True), some)
