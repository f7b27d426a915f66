"""`kinetics capacity`: batches by hand, as a table and as JSON; what does not fit is refused with the arithmetic."""

import json

import pytest

SMALL = ("capacity", "Qwen3-0.6B", "--hardware", "H200-SXM", "--devices", 8, "--context", 16_384)


def test_json_holds_the_batch_and_its_arithmetic(kinetics):
    finished = kinetics(*SMALL, "--attention", "dense", "--attention", "block_topk:16x64", "--json")
    assert finished.code == 0
    content = json.loads(finished.out)
    dense, sparse = content["rows"]
    assert (content["num_devices"], content["memory_share"]) == (8, 0.9)
    # (8 x 141e9 x 0.9 - 2 x 596,049,920) / (16,384 x 114,688), and 1024 page means of 57,344 bytes more.
    assert (dense["num_sequences"], sparse["num_sequences"]) == (539, 523)
    assert sparse["sequence_bytes"] - dense["sequence_bytes"] == 1024 * 57_344
    assert dense["arithmetic"].endswith("1.879 GB a sequence of 16,384 tokens = 539 sequences")
    for row in content["rows"]:
        assert row["batch_size"] == row["num_sequences"]
        assert row["tokens_per_s"] == pytest.approx(row["batch_size"] / row["step_s"])
    assert dense["break_even_batch"] == pytest.approx(2 * 595_984_384 / 1_879_048_192, rel=1e-3)


def test_a_batch_of_ones_own_is_timed(kinetics):
    """One chip, 10 sequences: (2 P + 10 x 1001 x 147,456 bytes) / 4.8e12 bytes/s."""
    args = ("capacity", "Qwen3-8B", "--hardware", "H200-SXM", "--context", 1000, "--batch-size", 10)
    (row,) = json.loads(kinetics(*args, "--json").out)["rows"]
    step_s = (15_136_811_008 + 10 * 1001 * 147_456) / 4.8e12
    assert row["step_s"] == pytest.approx(step_s)
    assert row["batch_size"] == 10 < row["num_sequences"]
    table = kinetics(*args).out
    assert "decoding 10;" in " ".join(table.split())
    assert f"{1e3 * step_s:.2f}" in table
    assert f"{10 / step_s:,.0f}" in table


def test_formats_and_share_are_honoured(kinetics):
    args = (*SMALL, "--kv-dtype", "int8", "--weight-dtype", "int4", "--memory-share", 0.5, "--json")
    (row,) = json.loads(kinetics(*args).out)["rows"]
    assert row["sequence_bytes"] == 16_384 * 114_688 * 130 / 256
    assert row["weight_bytes"] == 596_049_920 / 2
    assert row["usable_bytes"] == 8 * 141e9 * 0.5


def test_a_context_that_fits_nowhere_has_no_time(kinetics):
    args = ("capacity", "Qwen3-32B", "--hardware", "H100-SXM", "--context", 32_768, "--context", 1024)
    content = json.loads(kinetics(*args, "--json").out)
    assert [(row["num_sequences"], row["step_s"] is None) for row in content["rows"]] == [(0, True), (24, False)]
    assert "-" in kinetics(*args).out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*SMALL, "--batch-size", 4096), ("4,096 x 1.879 GB = 7.697 TB", "8 x 141 GB", "Use at most 539 sequences")),
        (("capacity", "Qwen3-32B", "--hardware", "T4"), ("weights of Qwen3-32B alone do not fit", "at least 5 chips")),
        (("capacity", "Qwen9"), ("unknown model 'Qwen9'",)),
        ((*SMALL, "--hardware", "Abacus"), ("unknown hardware 'Abacus'",)),
        ((*SMALL, "--attention", "sliding"), ("unknown attention spec 'sliding'",)),
        ((*SMALL, "--context", 0), ("context_len must be at least 1; got 0",)),
        ((*SMALL, "--devices", 0), ("num_devices must be finite and at least 1; got 0",)),
        ((*SMALL, "--memory-share", 2), ("memory_share must lie in (0, 1]; got 2",)),
        ((*SMALL, "--batch-size", 0), ("batch_size must be finite and at least 1; got 0",)),
        ((*SMALL, "--combine", "sum"), ("combine must be add, max or a norm p >= 1; got 'sum'",)),
        ((*SMALL, "--compute-dtype", "int3"), ("int3",)),
    ],
)
def test_a_slip_costs_one_sentence(kinetics, args, said):
    finished = kinetics(*args)
    assert finished.code == 2
    assert finished.out == ""
    assert finished.err.startswith("Error: ")
    assert finished.err.count("\n") == 1
    assert all(words in finished.err for words in said)
