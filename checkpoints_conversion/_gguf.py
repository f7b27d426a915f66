"""GGUF files of Llama, Qwen2 and Qwen3 as a source of Hugging Face tensors, dequantised one at a time.

The payload carries no checksum: what a flipped bit in it changed cannot be seen here.
"""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, final

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from kinetics_jax.models import Decoder

from ._gguf_config import ROPE_DIVISORS, hf_config
from ._gguf_file import GgufFile, GgufTensor
from ._load import checked_rules, fill_decoder, read_spec
from ._problems import raise_problems
from ._rules import EMBEDDING, TIED_HEAD
from ._stored import StoredTensor

# Theirs: ours, without the ending .weight or .bias.
_MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@final
class GgufSource:
    """Show a GGUF file as Hugging Face names, shapes, config and numbers.

    Args:
        path: The file.

    Attributes:
        path: The file.
        config: What config.json would say.

    Raises:
        ValueError: If the file is missing, truncated or malformed, is of another architecture, or has metadata that
            may change what the model computes. Lists them all.
        ImportError: If the package `gguf` (extra `gguf`) is missing.
    """

    def __init__(self, path: str | PathLike[str]):
        self.path = Path(path)
        self._file = GgufFile(self.path)
        self._tensors = {_hf_name(name): tensor for name, tensor in self._file.tensors.items() if name != ROPE_DIVISORS}
        self.config = self._read_config()

    def inventory(self) -> dict[str, StoredTensor]:
        """Return every tensor by its Hugging Face name; a name without one stays as it is in the file."""
        return {
            name: StoredTensor(name=name, file=self.path, dtype=tensor.dtype, shape=tensor.shape)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Return the numbers of a tensor by its Hugging Face name, float32 if the file quantises them.

        llama.cpp rotates neighbours (x_2i, x_2i+1), Hugging Face halves (x_i, x_i+H/2). Files of the architecture
        `llama` store the rows of queries and keys in llama.cpp's order; here they come back in the other.
        """
        return self._turned(name, self._file.read(self._tensors[name].name))

    def rows(self, name: str, *, num_groups: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the bytes in the file and the numbers, as `read`, of some rows of a tensor at a time.

        Args:
            name: Hugging Face name.
            num_groups: Of so many groups of rows none is torn: heads, whose rows the file may have in another order.
        """
        for stored, numbers in self._file.rows(self._tensors[name].name, num_groups=num_groups):
            yield stored, self._turned(name, numbers)

    def stored(self, name: str) -> tuple[str, np.ndarray]:
        """Return the type of a tensor in the file ("Q4_K") and its bytes there [num_bytes], for a manifest."""
        tensor = self._tensors[name]
        return tensor.type_name, self._file.stored_bytes(tensor.name)

    def _turned(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the rows of whole heads in the order of Hugging Face."""
        if self.config["model_type"] != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return rows
        pairs = rows.reshape(-1, self.config["head_dim"] // 2, 2, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    def _read_config(self) -> dict[str, Any]:
        problems: list[str] = []
        embedding = self._tensors.get(EMBEDDING)
        if embedding is None:
            problems.append("tensor token_embd.weight is missing")
        divisors = self._file.tensors.get(ROPE_DIVISORS)
        config = hf_config(
            self._file.metadata,
            vocab_size=embedding.shape[0] if embedding else 0,
            tied=TIED_HEAD not in self._tensors,
            rope_divisors=self._read_divisors(divisors) if divisors else None,
            problems=problems,
        )
        raise_problems(f"cannot load {self.path}", problems)
        return config

    def _read_divisors(self, divisors: GgufTensor) -> np.ndarray:
        return np.asarray(self._file.read(divisors.name), np.float64)


def load_gguf(path: str | PathLike[str], *, dtype: DTypeLike = jnp.float32) -> Decoder:
    """Build the decoder whose weights a GGUF file holds: Llama, Qwen2 or Qwen3, quantised or not.

    Args:
        path: The file. No code in it is run.
        dtype: Floating dtype of the weights and the computation, whatever the file stores.

    Returns:
        The decoder, every leaf filled from exactly one tensor and every tensor used.

    Raises:
        ValueError: If the file is missing, truncated or malformed, is of another architecture, asks for what `Decoder`
            does not compute, or if tensors are missing, extra or misshapen. Lists them all.
        ImportError: If the package `gguf` (extra `gguf`) is missing.

    Example:
        >>> load_gguf("no/such/file.gguf")
        Traceback (most recent call last):
        ...
        ValueError: cannot read no/such/file.gguf: no such file

    References:
        https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype; got {jnp.dtype(dtype).name}. Use float32 or bfloat16.")
    source = GgufSource(path)
    subject = f"cannot load {path}"
    problems: list[str] = []
    spec = read_spec(source.config, source.path.stem, problems)
    raise_problems(subject, problems)
    assert spec is not None
    rules = {rule.hf_name: rule for rule in checked_rules(spec, source.inventory(), problems)}
    raise_problems(subject, problems)

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for name in rules:
            yield name, source.read(name)

    return fill_decoder(spec, rules, stream(), dtype)


def _hf_name(name: str) -> str:
    """Return the Hugging Face name of a tensor, or its own if it has none."""
    stem, dot, ending = name.rpartition(".")
    if stem in _MODEL_NAMES:
        return f"{_MODEL_NAMES[stem]}{dot}{ending}"
    block, _, rest = stem.partition(".")
    layer, _, kind = rest.partition(".")
    if block == "blk" and layer.isdecimal() and kind in _LAYER_NAMES:
        return f"model.layers.{layer}.{_LAYER_NAMES[kind]}{dot}{ending}"
    return name
