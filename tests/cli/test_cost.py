"""`kinetics cost`: the bill adds up, as a table and as JSON, and a slip costs one sentence."""

import json

import pytest

REQUEST = ("cost", "Qwen3-8B", "--prompt-len", 500, "--gen-len", 8000, "--hardware", "PAPER_B200")


def test_json_holds_the_bill_and_its_total(kinetics):
    finished = kinetics(*REQUEST, "--trials", 4, "--attention", "block_topk:16x32", "--json")
    assert finished.code == 0
    content = json.loads(finished.out)
    terms = content["terms"]
    assert content["num_trials"] == 4
    assert content["flops"] == sum(amount for name, amount in terms.items() if name.endswith("_flops"))
    assert content["bytes"] == sum(amount for name, amount in terms.items() if name.endswith("_bytes"))
    assert content["eflops"] == pytest.approx(content["flops"] + 562.5 * content["bytes"])
    assert terms["search_bytes"] > 0


def test_combine_is_honoured(kinetics):
    totals = [json.loads(kinetics(*REQUEST, "--combine", how, "--json").out) for how in ("add", "2", "max")]
    content = totals[0]
    compute, memory = content["flops"], 562.5 * content["bytes"]
    wanted = [compute + memory, (compute**2 + memory**2) ** 0.5, max(compute, memory)]
    assert [content["eflops"] for content in totals] == pytest.approx(wanted)


def test_table_shows_every_term_and_the_total(kinetics):
    finished = kinetics(*REQUEST, "--batch-size", 8)
    content = json.loads(kinetics(*REQUEST, "--batch-size", 8, "--json").out)
    assert finished.code == 0
    for label in ("linear", "attention", "search", "KV read", "KV write", "weights", "total (add)"):
        assert label in finished.out
    for amount in (*content["terms"].values(), content["eflops"]):
        assert f"{amount:.3e}" in finished.out


def test_nothing_generated_costs_nothing(kinetics):
    finished = kinetics("cost", "Qwen3-8B", "--prompt-len", 10, "--gen-len", 0)
    assert finished.code == 0
    assert "0.000e+00" in finished.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("cost", "Qwen9", "--prompt-len", 1, "--gen-len", 1), ("unknown model 'Qwen9'", "Qwen3-8B")),
        ((*REQUEST[:-1], "Abacus"), ("unknown hardware 'Abacus'", "H100-SXM")),
        (("cost", "Qwen3-8B", "--prompt-len", 1, "--gen-len", -5), ("gen_len", "at least 0", "-5")),
        ((*REQUEST, "--trials", 0), ("num_trials", "at least 1")),
        ((*REQUEST, "--attention", "sliding"), ("unknown attention spec 'sliding'", "topk:128")),
        ((*REQUEST, "--attention", "block_topk:16x0"), ("num_pages must be at least 1",)),
        ((*REQUEST, "--combine", "sum"), ("combine must be add, max or a norm p >= 1; got 'sum'",)),
        ((*REQUEST, "--combine", "0.5"), ("p >= 1", "0.5")),
    ],
)
def test_a_slip_costs_one_sentence(kinetics, args, said):
    finished = kinetics(*args)
    assert finished.code == 2
    assert finished.out == ""
    assert finished.err.startswith("Error: ")
    assert finished.err.count("\n") == 1
    assert all(words in finished.err for words in said)
