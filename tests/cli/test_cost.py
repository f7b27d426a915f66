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


def test_time_energy_and_rent_of_one_chip_where_the_chip_has_the_figures(kinetics):
    request = (*REQUEST[:-1], "H100-SXM")
    content = json.loads(kinetics(*request, "--json").out)
    assert content["seconds"] == pytest.approx(content["eflops"] / 989.4e12)
    assert content["joules"] == pytest.approx(700 * content["seconds"])
    assert content["dollars"] == pytest.approx(6.88 * content["seconds"] / 3600)
    table = kinetics(*request).out
    assert all(f"{label} on one chip" in table for label in ("time", "energy", "rent"))
    paper = kinetics(*REQUEST).out
    assert "time on one chip" in paper
    assert "energy" not in paper
    assert json.loads(kinetics(*REQUEST, "--json").out)["dollars"] is None


def test_formats_and_conventions_are_honoured(kinetics):
    def price(*args):
        return json.loads(kinetics(*REQUEST, *args, "--json").out)

    wide, narrow = price("--batch-size", 8), price("--batch-size", 8, "--kv-dtype", "int8", "--weight-dtype", "int4")
    assert narrow["terms"]["kv_read_bytes"] == pytest.approx(wide["terms"]["kv_read_bytes"] * 130 / 256)
    assert narrow["terms"]["param_bytes"] == wide["terms"]["param_bytes"] / 4
    # The paper: 2 L_in D T + N D T^2 bytes, for D = 73,728 and no writes.
    paper = price("--convention", "paper", "--trials", 4)
    assert paper["bytes"] == pytest.approx(73_728 * 8000 * (2 * 500 + 4 * 8000))
    own = price("--trials", 4, "--no-share-prompt")["terms"]
    assert own["kv_read_bytes"] == 4 * price()["terms"]["kv_read_bytes"]
    chip = (*REQUEST[:-1], "H100-SXM", "--compute-dtype", "float8", "--kv-dtype", "float8", "--json")
    assert json.loads(kinetics(*chip).out)["flops_per_byte"] == pytest.approx(1978.9 / 3.35)


def test_prefill_is_added_when_asked_for(kinetics):
    plain, filled = (json.loads(kinetics(*REQUEST, *more, "--json").out) for more in ((), ("--prefill",)))
    assert plain["prefill"] is None
    assert filled["terms"] == plain["terms"]
    # Causal attention over 500 tokens: 4 x 36 layers x 32 heads x 128 FLOP for each of 125,250 pairs.
    assert filled["prefill"]["attention_flops"] == 589_824 * 125_250
    added = sum(amount for name, amount in filled["prefill"].items() if name.endswith("_flops"))
    assert filled["flops"] == pytest.approx(plain["flops"] + added)
    apart = json.loads(kinetics(*REQUEST, "--prefill", "--no-share-prompt", "--trials", 3, "--json").out)
    assert apart["prefill"]["attention_flops"] == 3 * 589_824 * 125_250
    assert kinetics(*REQUEST, "--prefill").out.count("prefill") == 2


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
        ((*REQUEST, "--convention", "german"), ("convention must be exact or paper; got 'german'",)),
        ((*REQUEST, "--kv-dtype", "int3"), ("unknown kv_dtype 'int3'", "int8")),
        ((*REQUEST, "--weight-dtype", "int3"), ("unknown weight_dtype 'int3'", "int8")),
        ((*REQUEST, "--prefill", "--convention", "paper"), ("--prefill", "--convention exact")),
    ],
)
def test_a_slip_costs_one_sentence(kinetics, args, said):
    finished = kinetics(*args)
    assert finished.code == 2
    assert finished.out == ""
    assert finished.err.startswith("Error: ")
    assert finished.err.count("\n") == 1
    assert all(words in finished.err for words in said)
