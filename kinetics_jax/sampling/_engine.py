"""The engine: continuous batching of many trials over one page pool, for the large runs.

Trials join and leave a batch of fixed shape between calls of one compiled program, which draws several tokens a call.
What a trial says follows from its key alone, as with `generate`: not from the batch, the order of admission, shared
prefixes, preemption, or the mesh (exactly, as far as a device computes each row of a batch the same way whatever the
others hold; chunks of prompts and shared prefixes round differently in the last bit).
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from kinetics_jax.attention import DATA_AXIS
from kinetics_jax.models import Decoder
from kinetics_jax.specs import AttentionSpec, Dense, SamplingSpec, attention_by_layer

from ._call import NO_TOKEN, Batch, CallWriter, Drawn, PromptChunk
from ._pages import PageGroup
from ._pools import Pools, common_page_len, default_num_pages, make_pools
from ._processes import place_call, place_rows, spans_processes
from ._programs import Programs
from ._request import Completion, EngineStats, FinishReason, Request
from ._scheduler import Lane, Scheduler, Slot, Trial
from ._stopping import RepetitionWatch, Stopping


class Engine:
    """Draw many trials, as many at a time as there are slots.

    Args:
        model: The language model; on a mesh (`models.shard_decoder`) the engine runs there: KV heads over "model",
            slots and pages over "data". Where the mesh spans processes (`jax.distributed`), each makes the same engine
            and submits the same requests in the same order, and all get every completion.
        attentions: The attention specs that requests may name. Each has a batch of its own; all share the pages.
        sampling: How tokens are drawn.
        stopping: What ends a trial besides its own limit.
        num_slots: Trials in a batch, B.
        max_len: Longest prompt and thought together [tokens]; None is the model's context.
        num_pages: Pages of the pool; None is what `num_slots` trials of `max_len` need, or what fits the device.
        page_len: Tokens in a page, P; None follows a spec that selects pages, else `DEFAULT_PAGE_LEN`.
        num_steps: Decode steps a call, T: rows that stop wait for the rest of the call.
        chunk_len: Prompt tokens computed at once; a longer prompt takes turns with decode calls.
        keep_log_probs: Whether completions carry log-probabilities.

    Raises:
        ValueError: If a size is not positive, specs select pages of different lengths or have more dense layers than
            the model has layers, the data axis of the mesh divides slots or pages with a rest, or the mesh spans
            processes and `stopping` limits seconds.

    Example:
        >>> from kinetics_jax.zoo import load_zoo_model
        >>> model = load_zoo_model("Kinetics-Mini-0.1M").model
        >>> engine = Engine(model, stopping=Stopping(stop_ids=(2,)), num_slots=2, max_len=32)
        >>> requests = [
        ...     Request(prompt_ids=(1, 20, 30), key=jax.random.key(0), trial=trial, max_gen_len=4) for trial in range(3)
        ... ]
        >>> sorted(completion.request.trial for completion in engine.run(requests))
        [0, 1, 2]

    References:
        Kwon et al., PagedAttention (arXiv 2309.06180); Yu et al., Orca (OSDI 2022), on continuous batching; Agrawal et
        al., Sarathi (arXiv 2308.16369), on chunked prefill.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        attentions: Sequence[AttentionSpec] = (Dense(),),
        sampling: SamplingSpec | None = None,
        stopping: Stopping,
        num_slots: int = 32,
        max_len: int | None = None,
        num_pages: int | None = None,
        page_len: int | None = None,
        num_steps: int = 16,
        chunk_len: int = 256,
        keep_log_probs: bool = False,
    ):
        spec, mesh = model.spec, model.mesh
        self._model = model
        self._max_len = spec.max_len if max_len is None else max_len
        _require_sizes(spec.max_len, num_slots=num_slots, max_len=self._max_len, num_steps=num_steps, chunk=chunk_len)
        for attention in attentions:
            attention_by_layer(attention, spec.num_layers)  # before anything compiles
        self._page_len = common_page_len(attentions, page_len)
        self._num_steps, self._mesh, self._stopping = num_steps, mesh, stopping
        self._chunk_len = -(-chunk_len // self._page_len) * self._page_len  # later chunks begin with a page
        if stopping.time_s is not None and spans_processes(mesh):
            raise ValueError(
                f"a limit of {stopping.time_s:g} s needs one clock; got a mesh that spans processes. Limit the tokens."
            )
        num_groups = 1 if mesh is None else mesh.shape[DATA_AXIS]
        if num_slots % num_groups:
            raise ValueError(
                f"the data axis must divide the slots; got {num_slots} slots and a data axis of {num_groups}. "
                f"Use a multiple of {num_groups}."
            )
        self._max_pages = -(-self._max_len // self._page_len)
        if num_pages is None:
            # Beside the slots: a scratch page a group, and the tail of a prompt that a lone trial copies.
            wanted = 2 * num_groups + len(attentions) * num_slots * self._max_pages
            num_pages = default_num_pages(model, self._page_len, wanted)
        per_group = num_pages // num_groups
        if per_group < 2:
            raise ValueError(f"num_pages must be at least {2 * num_groups}, one a group being scratch; got {num_pages}")
        groups = [PageGroup(per_group, self._page_len) for _ in range(num_groups)]
        self._scheduler = Scheduler(tuple(attentions), num_slots=num_slots, groups=groups, num_steps=num_steps)
        self._sampling = SamplingSpec() if sampling is None else sampling
        self._programs = Programs(
            model,
            sampling=self._sampling,
            stop_ids=stopping.stop_ids,
            closing=stopping.closing,
            num_steps=num_steps,
            num_page_groups=num_groups,
            keep_log_probs=keep_log_probs,
        )
        self._keep_log_probs = keep_log_probs
        self._num_remembered = 0 if self._sampling.repetition_penalty == 1 else spec.vocab_size
        self._writer = CallWriter(
            num_steps=num_steps,
            max_pages=self._max_pages,
            num_hidden=spec.d_model,
            dtype=np.dtype(model.dtype),
            num_remembered=self._num_remembered,
        )
        self._num_pages = num_groups * per_group
        self._pools, self._seen = self._empty_pools(), self._empty_seen()
        self._finished: deque[Completion] = deque()  # not handed out yet
        self._is_inside_step = False
        self._num_tokens = self._num_replayed = self._num_prompt_tokens = 0
        self._decode_s = self._prefill_s = 0.0

    @property
    def stats(self) -> EngineStats:
        """What has been done so far."""
        return EngineStats(
            num_tokens=self._num_tokens,
            num_replayed_tokens=self._num_replayed,
            num_prompt_tokens=self._num_prompt_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_pages_held=sum(group.pool.num_held for group in self._scheduler.groups),
            num_compilations=self._programs.num_compilations.total(),
            decode_s=self._decode_s,
            prefill_s=self._prefill_s,
        )

    @property
    def is_idle(self) -> bool:
        """Whether every submitted trial is finished and handed out."""
        return self._scheduler.is_idle and not self._finished

    def warm_up(self) -> None:
        """Compile every program now, by running it on nothing; later calls compile no more."""
        groups = [None] * len(self._scheduler.groups)
        for is_first, width in ((True, self._max_pages), *((False, width) for width in self._table_widths())):
            self._run_chunk(self._writer.chunk(groups, self._chunk_len, width), is_first=is_first)
        for lane in self._scheduler.lanes.values():
            self._run_batch(lane, self._writer.batch([None] * len(lane.slots)))

    def forget_prefixes(self) -> None:
        """Free the pages of prompts that are kept for who might begin alike and that no trial reads now."""
        for group in self._scheduler.groups:
            group.forget_prefixes()

    def submit(self, request: Request) -> None:
        """Queue a trial.

        Raises:
            ValueError: If its attention is none of the engine's, its tokens are none of the model's, or prompt and
                thought fit the engine's `max_len`, or its pool, in no way.
        """
        prompt_len, group, vocab_size = len(request.prompt_ids), self._scheduler.groups[0], self._model.spec.vocab_size
        if request.attention not in self._scheduler.lanes:
            known = ", ".join(map(str, self._scheduler.lanes))
            raise ValueError(f"the engine was made for the attention {known}; got {request.attention}. Name it there.")
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocab_size:
            unknown = next(token for token in request.prompt_ids if not 0 <= token < vocab_size)
            raise ValueError(
                f"prompt_ids must lie in 0..{vocab_size - 1}, the model's vocabulary; got {unknown}. "
                "Use the tokenizer of this model."
            )
        if prompt_len + request.max_gen_len > self._max_len:
            longest = self._max_len - prompt_len
            way_out = f"Use a limit of {longest} or less." if longest > 0 else "The prompt alone is too long."
            raise ValueError(
                f"prompt and thought must fit the context of {self._max_len} tokens; got {prompt_len} + "
                f"{request.max_gen_len}. {way_out}"
            )
        wanted, there = (
            group.num_pages_alone(prompt_len, request.max_gen_len),
            group.pool.num_free + group.pool.num_held,
        )
        if wanted > there:
            raise ValueError(
                f"the pool must hold one sequence: {prompt_len} + {request.max_gen_len} tokens need {wanted} pages of "
                f"{self._page_len}; it has {there}. Use num_pages={(wanted + 1) * len(self._scheduler.groups)} or more."
            )
        closing, rule = self._stopping.closing, self._stopping.repetition
        limit = request.max_gen_len if closing is None else min(request.max_gen_len, closing.max_gen_len)
        watch = None if rule is None else RepetitionWatch(rule)
        key_data = np.asarray(jax.random.key_data(request.key))
        self._scheduler.submit(Trial(request=request, key_data=key_data, max_gen_len=limit, watch=watch))

    def run(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Submit trials and yield each as it finishes, in no particular order, with those submitted before.

        Requests are taken as there is room for them, so that they may come from a generator. What is left of a run that
        its caller broke off, or whose generator raised, comes from the next run or step.

        Raises:
            ValueError: As `submit`; trials submitted before stay queued.
        """
        source, ahead = iter(requests), 2 * sum(len(lane.slots) for lane in self._scheduler.lanes.values())
        has_more = True
        while has_more or not self.is_idle:
            while has_more and self._scheduler.num_waiting < ahead:
                request = next(source, None)
                if request is None:
                    has_more = False
                else:
                    self.submit(request)
            self._advance()
            while self._finished:
                yield self._finished.popleft()

    def step(self) -> list[Completion]:
        """Admit what fits, compute prompts for a while, decode every batch for `num_steps`, and return who finished.

        A step that is broken off, by Ctrl-C say, loses no trial: the next one computes anew what was running.
        """
        self._advance()
        finished = list(self._finished)
        self._finished.clear()
        return finished

    def _advance(self) -> None:
        if self._is_inside_step:
            self._start_over()
        self._is_inside_step = True
        self._scheduler.admit()
        # As many chunks as decode steps: prompts get about as much time as the trials that wait for them.
        for _ in range(self._num_steps):
            if not self._fill_prompts():
                break
            self._scheduler.admit()
        for lane in self._scheduler.lanes.values():
            self._scheduler.reserve(lane)
            if any(True for _ in lane.running):
                self._decode(lane)
        self._is_inside_step = False

    def _start_over(self) -> None:
        """Take up what a step that was broken off left: nobody knows what it wrote, or whether its pools came back."""
        self._scheduler.start_over()
        if any(array.is_deleted() for array in (*self._pools, *self._seen.values())):
            self._pools, self._seen = self._empty_pools(), self._empty_seen()

    def _fill_prompts(self) -> bool:
        """Compute a chunk of the prompt that each group is filling; False if there is none."""
        groups = self._scheduler.groups
        prompts = [group.filling for group in groups]
        if not any(prompts):
            return False
        started = time.perf_counter()
        is_first = all(prompt is None or prompt.num_filled == 0 for prompt in prompts)
        longest = max(prompt.num_filled + self._chunk_len for prompt in prompts if prompt is not None)
        chunk = self._writer.chunk(prompts, self._chunk_len, self._max_pages if is_first else self._width_for(longest))
        hidden = self._run_chunk(chunk, is_first=is_first)
        for row, group in enumerate(groups):
            if group.filling is not None:
                group.filling.num_filled += int(chunk.num_new[row])
                self._num_prompt_tokens += int(chunk.num_new[row])
                if group.filling.num_filled == len(group.filling.token_ids):
                    group.finish_prompt(hidden[row])
        self._prefill_s += time.perf_counter() - started
        return True

    def _decode(self, lane: Lane) -> None:
        """Run the batch of a lane once, hand out what it drew, and take out who has finished."""
        started, num_compilations = time.perf_counter(), self._programs.num_compilations.total()
        drawn = self._run_batch(lane, self._writer.batch(lane.slots))
        elapsed = time.perf_counter() - started
        self._decode_s += elapsed
        running = [(row, slot) for row, slot in enumerate(lane.slots) if slot is not None]
        # The minute of a compilation is no trial's: a limit on seconds would end the first ones for it.
        is_compiled = self._programs.num_compilations.total() == num_compilations
        token_ids, log_probs = (np.asarray(array).T.tolist() for array in drawn)
        for row, slot in running:
            slot.trial.time_s += is_compiled * elapsed / len(running)
            self._take_tokens(slot, token_ids[row], log_probs[row])
            reason = self._finish_reason(slot)
            if reason is not None:
                self._finished.append(_completion(slot, reason, has_log_probs=self._keep_log_probs))
                self._scheduler.finish(lane, slot)

    def _take_tokens(self, slot: Slot, token_ids: list[int], log_probs: list[float]) -> None:
        """Append what a row drew; tokens that the trial had before its preemption are drawn again and passed over."""
        trial, closing = slot.trial, self._stopping.closing
        first = 0 if slot.num_drawn == 0 else 1
        end = token_ids.index(NO_TOKEN, first) if NO_TOKEN in token_ids[first:] else len(token_ids)
        known = trial.token_ids[slot.num_drawn : slot.num_drawn + end - first]
        new = first + len(known)
        assert token_ids[first:new] == known, "a preempted trial must say the same again"
        self._num_replayed += len(known)
        self._num_tokens += end - new
        trial.token_ids += token_ids[new:end]
        if self._keep_log_probs:
            trial.log_probs += log_probs[new:end]
        if closing is not None and closing.end_think_id in token_ids[first:end]:
            is_in_time = slot.num_drawn + token_ids.index(closing.end_think_id, first) - first < closing.think_len
            slot.closed = slot.closed or is_in_time
        slot.num_drawn += end - first

    def _finish_reason(self, slot: Slot) -> FinishReason | None:
        """Say why a trial ends here, or None; what it said after a loop began to repeat is dropped."""
        trial = slot.trial
        if slot.num_drawn < len(trial.token_ids):
            return None  # still computing anew what it had
        if trial.watch is not None:
            num_kept = trial.watch.extend(trial.token_ids[trial.num_watched :])
            trial.num_watched = len(trial.token_ids)
            if num_kept is not None:
                del trial.token_ids[num_kept:], trial.log_probs[num_kept:]
                return "repetition"
        if trial.token_ids[-1] in self._stopping.stop_ids:
            return "eos"
        if len(trial.token_ids) >= trial.max_gen_len:
            return "length"
        if self._stopping.time_s is not None and trial.time_s > self._stopping.time_s:
            return "time"
        return None

    def _run_chunk(self, chunk: PromptChunk, *, is_first: bool) -> np.ndarray:
        self._pools, hidden = self._programs.prefill(self._pools, place_call(chunk, self._mesh), is_first=is_first)
        return np.asarray(hidden)

    def _run_batch(self, lane: Lane, batch: Batch) -> Drawn:
        seen, placed = self._seen[lane.attention], place_call(batch, self._mesh)
        self._pools, self._seen[lane.attention], drawn = self._programs.decode(
            self._pools, seen, placed, lane.attention
        )
        return jax.device_get(drawn)

    def _empty_pools(self) -> Pools:
        num_groups = len(self._scheduler.groups)
        return make_pools(self._model, num_pages=self._num_pages, page_len=self._page_len, num_page_groups=num_groups)

    def _empty_seen(self) -> dict[AttentionSpec, jax.Array]:
        return {
            spec: place_rows(np.zeros((len(lane.slots), self._num_remembered), bool), self._mesh)
            for spec, lane in self._scheduler.lanes.items()
        }

    def _table_widths(self) -> list[int]:
        """Return the widths of page tables that later chunks of a prompt read: few, so that few programs compile."""
        widths, width = [], 2 * self._chunk_len // self._page_len
        while width < self._max_pages:
            widths.append(width)
            width *= 4
        return [*widths, self._max_pages] if self._max_len > self._page_len else []

    def _width_for(self, length: int) -> int:
        return next(width for width in self._table_widths() if width * self._page_len >= min(length, self._max_len))


def _completion(slot: Slot, reason: FinishReason, *, has_log_probs: bool) -> Completion:
    trial = slot.trial
    return Completion(
        request=trial.request,
        token_ids=tuple(trial.token_ids),
        finish_reason=reason,
        log_probs=tuple(trial.log_probs) if has_log_probs else None,
        time_s=trial.time_s,
        num_preemptions=trial.num_preemptions,
    )


def _require_sizes(context_len: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    if sizes["max_len"] > context_len:
        raise ValueError(f"max_len must fit the model's context of {context_len} tokens; got {sizes['max_len']}")
