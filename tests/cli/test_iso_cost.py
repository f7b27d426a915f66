"""`kinetics iso-cost`: the lengths of the paper's figure, as a table and as JSON, and a slip costs one sentence."""

import json

import pytest

from kinetics_jax.cost import eflops, request_cost
from kinetics_jax.specs import HARDWARE, MODELS, parse_attention

PAPER = ("iso-cost", "--eflops", "2e16", "--hardware", "PAPER_B200", "--convention", "paper")
# Positive roots of (r + I) D T^2 + 2 P T = 2e16 with the published P.
LENGTHS = {"Qwen3-0.6B": 24_833, "Qwen3-1.7B": 24_794, "Qwen3-4B": 21_786, "Qwen3-8B": 21_687, "Qwen3-32B": 15_922}


def test_the_papers_figure(kinetics):
    finished = kinetics(*PAPER, "--json")
    assert finished.code == 0
    content = json.loads(finished.out)
    found = {row["model"]: row["gen_len"] for row in content["rows"]}
    assert {name: round(found[name]) for name in LENGTHS} == LENGTHS
    assert "Qwen3-14B" in found
    assert content["flops_per_byte"] == 562.5
    table = kinetics(*PAPER).out
    assert all(f"{length:,}" in table for length in LENGTHS.values())


def test_every_option_reaches_the_price(kinetics):
    """The length found costs what was asked for, by `request_cost` itself."""
    options = ("--prompt-len", 300, "--trials", 3, "--batch-size", 5, "--combine", "2", "--kv-dtype", "float8")
    formats = ("--weight-dtype", "int4", "--compute-dtype", "float8")
    texts = ("quest:16x8,dense_layers=2", "dense")
    args = ("iso-cost", "Qwen3-8B", "Qwen3-30B-A3B", "--eflops", "1e15", *options, *formats)
    content = json.loads(kinetics(*args, *(word for text in texts for word in ("--attention", text)), "--json").out)
    assert [(row["model"], row["attention"]) for row in content["rows"]] == [
        (name, text) for name in ("Qwen3-8B", "Qwen3-30B-A3B") for text in texts
    ]
    for row in content["rows"]:
        bill = request_cost(
            MODELS[row["model"]],
            parse_attention(row["attention"]),
            prompt_len=300,
            gen_len=row["gen_len"],
            num_trials=3,
            batch_size=5,
            kv_dtype="float8",
            weight_dtype="int4",
        )
        total = eflops(bill, HARDWARE["H100-SXM"], combine=2.0, compute_dtype="float8", kv_dtype="float8")
        assert total == pytest.approx(1e15, rel=1e-9)


def test_lengths_beyond_the_models_context_are_starred(kinetics):
    table = kinetics(*PAPER, "Qwen3-8B", "--attention", "dense", "--attention", "topk:64").out
    assert "21,687 " in table
    assert table.count("*") == 2  # One in the title, one beside the length of topk:64.


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*PAPER, "Qwen9"), ("unknown model 'Qwen9'", "Qwen3-8B")),
        ((*PAPER, "--hardware", "Abacus"), ("unknown hardware 'Abacus'",)),
        ((*PAPER, "--attention", "sliding"), ("unknown attention spec 'sliding'",)),
        ((*PAPER, "--combine", "sum"), ("combine must be add, max or a norm p >= 1; got 'sum'",)),
        ((*PAPER, "--convention", "german"), ("convention must be exact or paper; got 'german'",)),
        (("iso-cost", "--eflops", "-1"), ("target_eflops must be finite and at least 0; got -1",)),
        (("iso-cost", "--eflops", "nan"), ("target_eflops must be finite",)),
        ((*PAPER, "--trials", 0), ("num_trials must be finite and at least 1; got 0",)),
    ],
)
def test_a_slip_costs_one_sentence(kinetics, args, said):
    finished = kinetics(*args)
    assert finished.code == 2
    assert finished.out == ""
    assert finished.err.startswith("Error: ")
    assert finished.err.count("\n") == 1
    assert all(words in finished.err for words in said)
