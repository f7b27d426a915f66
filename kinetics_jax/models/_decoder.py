"""The decoder: token ids in, next-token logits out, all at once, prefill, many tokens and one token a step.

Called by `sampling` and `training`; `checkpoints_conversion` fills it and `_sharding` puts it on a mesh.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from kinetics_jax.attention import (
    PagedCache,
    Rotation,
    advance,
    append_tokens,
    causal_attention,
    decode_attention,
    extend_attention,
    place_kv,
    rotate_and_append,
)
from kinetics_jax.specs import AttentionSpec, ModelSpec, attention_by_layer

from ._layer import DecoderLayer, logits_from
from ._linear import Linear
from ._mlp import MixtureOfExperts
from ._norm import RMSNorm


class Decoder(nnx.Module):
    """A language model of the Qwen3, Qwen3-MoE, Qwen2 or Llama 3 architecture, whichever its spec describes.

    Args:
        spec: Its geometry.
        dtype: Compute dtype of activations; norms and logits are float32 inside.
        param_dtype: Storage dtype of the weights.
        rngs: Initialisation keys.

    Raises:
        NotImplementedError: If the spec is geometry only: an ungated MLP, biases everywhere or learned positions (OPT).

    Example:
        >>> from kinetics_jax.specs import MODELS
        >>> spec, token_ids = MODELS["Kinetics-Mini-0.1M"], jnp.zeros((1, 3), jnp.int32)
        >>> nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0))(token_ids)).shape
        (1, 3, 64)

    References:
        Qwen3 technical report (arXiv 2505.09388), section 2; Qwen2 (arXiv 2407.10671), section 2.2; The Llama 3 Herd
        of Models (arXiv 2407.21783), section 3.2.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _require_runnable(spec)
        self.spec = spec
        self.dtype = dtype
        self.mesh: Mesh | None = None  # set by `shard_decoder`
        self.embed = nnx.Embed(spec.vocab_size, spec.d_model, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.layers = nnx.List(
            [DecoderLayer(spec, dtype=dtype, param_dtype=param_dtype, rngs=rngs) for _ in range(spec.num_layers)]
        )
        self.final_norm = RMSNorm(spec.d_model, epsilon=spec.norm_eps, dtype=dtype, param_dtype=param_dtype)
        self.lm_head = (
            None
            if spec.tied_embeddings
            else Linear((spec.d_model,), (spec.vocab_size,), dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        )

    def __call__(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Return the logits of every position, without a cache.

        Args:
            token_ids: Sequences from their first token on [B, T].

        Returns:
            Float32 logits of the token after each position [B, T, V].
        """
        hidden, _, _ = self._run_causal(token_ids)
        return self.next_logits(hidden)

    def prefill(
        self, token_ids: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "L B T K H"], Float[Array, "L B T K H"]]:
        """Return the final hidden states and every layer's keys and values.

        Padding belongs at the end: later tokens never change earlier ones.

        Args:
            token_ids: Prompts [B, T].

        Returns:
            Hidden states [B, T, D], which `next_logits` turns into logits, keys and values [L, B, T, K, H].
        """
        hidden, keys, values = self._run_causal(token_ids)
        return hidden, place_kv(jnp.stack(keys), self.mesh), place_kv(jnp.stack(values), self.mesh)

    def next_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Return the float32 logits [..., V] that final hidden states [..., D] from `prefill` predict."""
        if self.lm_head is None:
            return logits_from(hidden, self.embed.embedding[...])
        return self.lm_head.product(hidden, result_dtype=jnp.float32)

    def hidden_states(self, token_ids: Int[Array, "B T"]) -> Float[Array, "states B T D"]:
        """Return the residual stream after the embedding and after each layer: to find where two models part.

        Args:
            token_ids: Sequences from their first token on [B, T].

        Returns:
            L + 1 states, each before any norm [L + 1, B, T, D].
        """
        hidden = self._embed(token_ids)
        positions = jnp.arange(token_ids.shape[1])[None]
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, positions, _attend_causally)
            states.append(hidden)
        return jnp.stack(states)

    def extend(
        self, token_ids: Int[Array, "B T"], cache: PagedCache, num_new: Int[Array, " B"], *, is_first: bool = False
    ) -> tuple[Float[Array, "B T D"], PagedCache]:
        """Append up to T tokens per sequence at once, attending densely: a chunk of a prompt, or drafts to verify.

        Args:
            token_ids: New tokens, padded at the end [B, T].
            cache: Everything before them, with pages for them.
            num_new: New tokens of each sequence [B], at most T; a sequence with none stays as it is.
            is_first: Promises that the cache holds nothing before them, so that no page needs to be read (static).

        Returns:
            Final hidden states [B, T, D], which `next_logits` turns into logits, and the cache `num_new` tokens longer.
        """
        positions = cache.lengths[:, None] + jnp.arange(token_ids.shape[1], dtype=cache.lengths.dtype)[None, :]
        scale = self.spec.head_dim**-0.5
        hidden = self._embed(token_ids)
        for index, layer in enumerate(self.layers):

            def attend(queries: Array, keys: Array, values: Array, rotation: Rotation, index: int = index) -> Array:
                nonlocal cache
                queries, keys = rotation.turned(queries, keys)
                cache = append_tokens(cache, index, keys, values, num_new, mesh=self.mesh)
                if is_first:
                    return causal_attention(queries, keys, values)
                return extend_attention(queries, cache, index, num_new, scale=scale, mesh=self.mesh)

            hidden = layer(hidden, positions, attend)
        return self.final_norm(hidden), advance(cache, num_new)

    def decode_step(
        self,
        token_ids: Int[Array, " B"],
        cache: PagedCache,
        attention: AttentionSpec,
        *,
        active: Bool[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B V"], PagedCache]:
        """Append one token per sequence and return the logits of the next.

        Args:
            token_ids: The newest token of each sequence [B].
            cache: Everything before it.
            attention: Which cache entries each layer reads; its first `dense_layers` layers read everything.
            active: Which sequences grow; None is all. The others overwrite the same position at the next step.

        Returns:
            Float32 logits [B, V] and the cache one token longer.

        Raises:
            ValueError: If `attention` has more dense layers than the model has layers.
        """
        by_layer = attention_by_layer(attention, self.spec.num_layers)
        positions = cache.lengths[:, None]
        hidden = self._embed(token_ids[:, None])
        for index, layer in enumerate(self.layers):

            def attend(queries: Array, keys: Array, values: Array, rotation: Rotation, index: int = index) -> Array:
                nonlocal cache
                heads = queries[:, 0], keys[:, 0], values[:, 0]
                ready, cache = rotate_and_append(cache, index, *heads, rotation, mesh=self.mesh)
                scale = self.spec.head_dim**-0.5
                return decode_attention(by_layer[index], ready, cache, index, scale=scale, mesh=self.mesh)[:, None]

            hidden = layer(hidden, positions, attend)
        num_new = 1 if active is None else active.astype(cache.lengths.dtype)
        return self.next_logits(self.final_norm(hidden[:, 0])), advance(cache, num_new)

    def _run_causal(self, token_ids: Array) -> tuple[Array, list[Array], list[Array]]:
        positions = jnp.arange(token_ids.shape[1])[None]
        all_keys, all_values = [], []

        def attend(queries: Array, keys: Array, values: Array, rotation: Rotation) -> Array:
            queries, keys = rotation.turned(queries, keys)
            all_keys.append(keys)
            all_values.append(values)
            return causal_attention(queries, keys, values)

        hidden = self._embed(token_ids)
        for layer in self.layers:
            hidden = layer(hidden, positions, attend)
        return self.final_norm(hidden), all_keys, all_values

    def _embed(self, token_ids: Array) -> Array:
        return self.embed.embedding[...][token_ids].astype(self.dtype)


def _attend_causally(queries: Array, keys: Array, values: Array, rotation: Rotation) -> Array:
    return causal_attention(*rotation.turned(queries, keys), values)


def abstract_decoder(spec: ModelSpec, *, dtype: DTypeLike = jnp.float32, int8: bool = False) -> Decoder:
    """Return the decoder with shapes in place of arrays, for converters and for counting without memory.

    One layer is traced and copied: tracing all 64 layers of Qwen3-32B takes a minute.

    Args:
        spec: The geometry.
        dtype: Compute dtype and storage dtype.
        int8: Whether the kernels of projections, MLP or experts and of an untied head are int8. Each then has a leaf
            beside it, its name with `_scale`: float32, one an output channel. Embedding, norms, biases and router
            keep `dtype`.

    Raises:
        NotImplementedError: If `Decoder` does not run the spec.

    Example:
        >>> import jax
        >>> from kinetics_jax.specs import MODELS
        >>> spec = MODELS["Qwen3-32B"]
        >>> sum(leaf.size for leaf in jax.tree.leaves(abstract_decoder(spec))) == spec.num_params
        True
    """
    one_layer = dataclasses.replace(spec, num_layers=1)
    decoder = nnx.eval_shape(lambda: Decoder(one_layer, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)))
    decoder.spec = spec
    if int8:
        for _, module in nnx.iter_modules(decoder):
            if isinstance(module, Linear | MixtureOfExperts):
                module.hold_int8()
    decoder.layers.extend([nnx.clone(decoder.layers[0]) for _ in range(spec.num_layers - 1)])
    return decoder


def _require_runnable(spec: ModelSpec) -> None:
    """Refuse what `cost` can price and `Decoder` cannot run."""
    wanted = {"gated_mlp": True, "has_biases": False, "num_positions": 0}
    got = {field: getattr(spec, field) for field in wanted}
    if got != wanted:
        lacking = ", ".join(f"{field}={value}" for field, value in got.items() if value != wanted[field])
        raise NotImplementedError(
            f"Decoder runs specs with gated_mlp=True, has_biases=False and num_positions=0; {spec.name} has {lacking} "
            "and is geometry only: price it with `cost`, or run a model of another family."
        )
