"""A model card as Markdown with the header that the Hugging Face hub reads. Renders what `_card` measured."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

_HEADER = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [test-time-scaling, sparse-attention, synthetic-task, kinetics-jax]
---
"""

_WHAT_IT_IS_NOT = """## What it is not
A toy-scale research model. It knows one synthetic task and no language, answers no other question, and must not be
used to judge people, facts or text. What is measured on it are real measurements of a small model; they say nothing
certain about large ones, and were not tuned to agree with any paper.
"""


def render_card(card: dict[str, Any]) -> str:
    """Return the text of README.md."""
    sections = [_summary(card), _WHAT_IT_IS_NOT, _training(card), _accuracy(card), _budgets(card), _reproduce(card)]
    if card["notes"]:
        sections.append(f"## What was tried\n{card['notes']}")
    sections.append("## Licence\nApache-2.0, weights and recorded traces included.\n")
    return _HEADER + "\n" + "\n".join(sections)


def _summary(card: dict[str, Any]) -> str:
    geometry = card["geometry"]
    sizes = (
        ("parameters", f"{geometry['num_params']:,}"),
        ("layers, width, MLP width", f"{geometry['num_layers']}, {geometry['d_model']}, {geometry['mlp_dim']}"),
        (
            "query heads, KV heads, head width",
            f"{geometry['num_heads']}, {geometry['num_kv_heads']}, {geometry['head_dim']}",
        ),
        ("KV cache elements per token", f"{geometry['kv_elements_per_token']:,}"),
        ("vocabulary, longest context", f"{geometry['vocab_size']}, {geometry['max_len']:,} tokens"),
        ("weights on disk", f"{card['weights_bytes'] / 1e6:.2f} MB, bfloat16 safetensors"),
        ("weights hash", f"`{card['weights_hash'][:16]}`"),
    )
    return (
        f"# {geometry['name']}\n"
        f"A decoder of the Qwen3 architecture, trained from scratch on the synthetic task `{card['task']}`.\n"
        "It loads in `transformers` as `Qwen3ForCausalLM` and by name in `kinetics_jax`.\n\n"
        + _table(("size", ""), sizes, num_labels=2)
    )


def _training(card: dict[str, Any]) -> str:
    recipe = card["recipe"]
    weights = ", ".join(f"{weight:g}" for weight in recipe["depth_weights"])
    versions = ", ".join(f"{library} {number}" for library, number in card["versions"].items())
    settings = (
        ("steps", f"{recipe['num_steps']:,}"),
        ("sequences per step", str(recipe["batch_size"])),
        (
            "peak learning rate",
            f"{recipe['learning_rate']:g}, {recipe['warmup_steps']:,} steps of warm-up, then cosine",
        ),
        ("weight decay, gradient norm limit", f"{recipe['weight_decay']:g}, {recipe['max_grad_norm']:g}"),
        ("depth weights, shallowest first", weights),
        ("seed", str(recipe["seed"])),
        ("hardware", f"one {card['device']}"),
        ("time", f"{card['seconds']:,.0f} s, compilation included"),
        ("versions", versions),
    )
    curve = card["loss"]
    loss = _table(
        ("step", *(f"{point['step']:,}" for point in curve)),
        [("loss", *(f"{point['loss']:.3f}" for point in curve))],
    )
    return (
        "## Training\nAdamW on reference thoughts; the loss counts thought tokens only. Training graphs are drawn\n"
        "on the device from seeds disjoint from those of the held-out problems.\n\n"
        + _table(("setting", ""), settings, num_labels=2)
        + "\nLoss [nats per thought token], each the mean since the record before it (one every hundred steps):\n\n"
        + loss
    )


def _accuracy(card: dict[str, Any]) -> str:
    rows = card["by_depth"]
    measures = [name for name in rows[0] if name.startswith("pass@")]
    text = (
        "## Accuracy by depth, dense attention\n"
        f"{card['num_problems']} held-out problems x {card['num_trials']} trials, "
        f"prompts of {card['prompt_len']} tokens,\n`{card['sampling']}`.\n"
        f"Mean thought: {card['mean_gen_len']:.0f} tokens of at most {card['max_gen_len']}. "
        "Each column is a limit on the length of the thought.\n"
    )
    for measure in measures:
        limits = list(rows[0][measure])
        table = _table(
            ("depth", "problems", *(f"{limit} tokens" for limit in limits)),
            [
                (row["depth"], str(row["num_problems"]), *(f"{row[measure][limit]:.3f}" for limit in limits))
                for row in rows
            ],
        )
        text += f"\n**{measure.capitalize()}**\n\n{table}"
    return text


def _budgets(card: dict[str, Any]) -> str:
    rows = card["by_budget"]
    labels = sorted({row["label"] for row in rows if row["budget_len"] is not None})
    budgets = sorted({row["budget_len"] for row in rows if row["budget_len"] is not None})
    cells = {(row["label"], row["budget_len"]): f"{row['accuracy']:.3f}" for row in rows}
    dense = next(row for row in rows if row["budget_len"] is None)
    widest = max((row["high"] - row["low"]) / 2 for row in rows)
    text = (
        "## Accuracy by KV budget\nPass@1 at full length; the budget is the tokens that a step reads per layer and KV "
        f"head.\nDense reads all: {dense['accuracy']:.3f} (90% interval {dense['low']:.3f} to {dense['high']:.3f}; no "
        f"interval below is wider than\n{2 * widest:.2f}).\n"
    )
    if not budgets:
        return text
    table = _table(
        ("budget", *labels),
        [(str(budget), *(cells.get((label, budget), "") for label in labels)) for budget in budgets],
    )
    return f"{text}\n{table}"


def _reproduce(card: dict[str, Any]) -> str:
    commands = {"train": "# no recipe of this release has these settings"}
    commands |= {name: _wrapped(command) for name, command in card["commands"].items() if command is not None}
    return (
        "## Reproduce\n```\n" + "\n".join(commands.values()) + "\n```\n"
        "Another device or another version may round differently, and so give other weights of like quality.\n"
    )


def _wrapped(command: str) -> str:
    """Break a long command at its spaces, each line but the last ended by a backslash."""
    lines = textwrap.wrap(command, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, num_labels: int = 1) -> str:
    """Return a Markdown table; columns after the first `num_labels` are right-aligned."""
    rule = ["---" if index < num_labels else "---:" for index in range(len(columns))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (columns, rule, *rows))
