"""What `request_cost` counts under each convention: entries and pages, summed over the decode steps of one layer.

Step t = 1..T of a generation sees a context of S = L_in + t entries, the new token included. `exact` sums the steps
one by one, in closed form; `paper` integrates over t, as the paper does.

A new sparse method adds its `_count_...` function here and one line to `_EXACT`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense, Local, PageSelection, Quest, TopK

from ._numbers import namespace

Convention = Literal["exact", "paper"]


class Counts(NamedTuple):
    """Sums over the steps of a generation, per KV head of a layer that runs the method.

    `attended` (entries) and `pages_scored` drive FLOPs and are per trial. `read` (entries) and `pages_searched` drive
    bytes and are for all N trials together, whose common prompt is fetched once where that is possible.
    `pages_summarised` is per trial.
    """

    attended: Any
    read: Any
    pages_scored: Any
    pages_searched: Any
    pages_summarised: Any


def count(attention: AttentionSpec, prompt_len: Any, gen_len: Any, num_sharing: Any, convention: Convention) -> Counts:
    """Count what `num_sharing` trials of one prompt read, search and write.

    Raises:
        ValueError: If the convention is unknown.
    """
    if convention == "paper":
        return _count_as_paper(attention, prompt_len, gen_len, num_sharing)
    if convention == "exact":
        return _EXACT[type(attention)](attention, prompt_len, gen_len, num_sharing)
    raise ValueError(f"unknown convention {convention!r}. Known: exact, paper")


def _count_dense(_: Dense, prompt_len: Any, gen_len: Any, num_sharing: Any) -> Counts:
    """Read S entries a step; the prompt's are read once for all trials."""
    prompt, own = prompt_len * gen_len, _triangle(gen_len)
    return Counts(prompt + own, prompt + num_sharing * own, 0.0, 0.0, 0.0)


def _count_top_k(attention: TopK, prompt_len: Any, gen_len: Any, num_sharing: Any) -> Counts:
    """Read min(S, B) entries a step.

    N trials that select on their own gather N B entries, unless streaming everything once, L_in + N t, is less:
    so many trials of one prompt never read more than dense, and a larger budget is never cheaper.
    """
    budget_len = attention.budget_len

    def total(num_sharing: Any) -> Any:
        num_streamed = _clip(namespace(gen_len).floor(budget_len - prompt_len / num_sharing), gen_len)
        gathered = num_sharing * (gen_len - num_streamed) * budget_len
        return num_streamed * prompt_len + num_sharing * _triangle(num_streamed) + gathered

    return Counts(total(1.0), total(num_sharing), 0.0, 0.0, 0.0)


def _count_local(attention: Local, prompt_len: Any, gen_len: Any, num_sharing: Any) -> Counts:
    """Read the newest W entries and the first `sink_len` a step; of these, the prompt's are the same for all trials.

    A trial's own entries among them: the newest min(t, W), and the sinks that the prompt was too short to fill.
    """
    xp = namespace(prompt_len, gen_len)

    def clamped_sum(first_len: Any, budget_len: Any) -> Any:
        num_filling = _clip(xp.floor(budget_len - first_len), gen_len)
        return num_filling * first_len + _triangle(num_filling) + (gen_len - num_filling) * budget_len

    attended = clamped_sum(prompt_len, attention.budget_len)
    own_budget_len = attention.window_len + xp.maximum(attention.sink_len - prompt_len, 0.0)
    own = clamped_sum(0.0 * prompt_len, own_budget_len)
    return Counts(attended, attended + (num_sharing - 1.0) * own, 0.0, 0.0, 0.0)


def _count_pages(attention: PageSelection, prompt_len: Any, gen_len: Any, num_sharing: Any) -> Counts:
    """Read all pages while they fit, then `num_pages - 1` full pages and the newest one, which is partly filled.

        read(S) = S                       if ceil(S / P) <= pages
                  (pages - 1) P + tail(S) else,  tail(S) in 1..P

    A step searches when the pages do not fit: it reads the summary of each of its ceil(S / P) pages. Those of full
    prompt pages are common to all trials. Within one page of S, gathering (N read(S)) and streaming (L_in + N t) grow
    alike, so which is less changes at page edges only.
    """
    floor, page_len, num_pages = namespace(gen_len).floor, attention.page_len, attention.num_pages
    last_len = prompt_len + gen_len

    def total(num_sharing: Any) -> Any:
        num_spared = floor(num_pages - 1 + prompt_len * (1.0 - 1.0 / num_sharing) / page_len)
        num_streamed = _clip((num_spared + 1.0) * page_len - prompt_len, gen_len)
        tails = _sum_tails(prompt_len + num_streamed, last_len, page_len)
        gathered = num_sharing * ((gen_len - num_streamed) * ((num_pages - 1) * page_len) + tails)
        return num_streamed * prompt_len + num_sharing * _triangle(num_streamed) + gathered

    num_fitting = _clip(attention.budget_len - prompt_len, gen_len)
    num_searches = gen_len - num_fitting
    num_full, _ = _split(prompt_len + num_fitting, page_len)
    # Half a token off the edge: XLA may divide by multiplying with 1 / P, which must not lose a full prompt page.
    num_shared = floor((floor(prompt_len) + 0.5) / page_len)
    later = _sum_new_pages(prompt_len + num_fitting, last_len, page_len)
    own = num_searches * (num_full + 1.0 - num_shared) + later
    common = num_searches * num_shared
    return Counts(total(1.0), total(num_sharing), common + own, common + num_sharing * own, gen_len)


_EXACT: dict[type, Callable[[Any, Any, Any, Any], Counts]] = {
    Dense: _count_dense,
    TopK: _count_top_k,
    Local: _count_local,
    BlockTopK: _count_pages,
    Quest: _count_pages,
}


def _count_as_paper(attention: AttentionSpec, prompt_len: Any, gen_len: Any, num_sharing: Any) -> Counts:
    """Integrate over t from 0 to T, as PAPER.md section 2 (`request_cost` lists the differences)."""
    prompt, own = prompt_len * gen_len, gen_len**2 / 2
    if isinstance(attention, Dense):
        return Counts(prompt + own, prompt + num_sharing * own, 0.0, 0.0, 0.0)
    budget_len = attention.budget_len
    num_filling = _clip(budget_len - prompt_len, gen_len)
    attended = num_filling * prompt_len + num_filling**2 / 2 + (gen_len - num_filling) * budget_len
    if not isinstance(attention, PageSelection):
        return Counts(attended, num_sharing * attended, 0.0, 0.0, 0.0)
    scored, searched = (prompt + own) / attention.page_len, (prompt + num_sharing * own) / attention.page_len
    return Counts(attended, num_sharing * attended, scored, searched, 0.0)


def _triangle(length: Any) -> Any:
    """1 + 2 + ... + length."""
    return length * (length + 1.0) / 2


def _clip(num_steps: Any, gen_len: Any) -> Any:
    xp = namespace(num_steps, gen_len)
    return xp.minimum(xp.maximum(num_steps, 0.0), gen_len)


def _split(length: Any, page_len: int) -> tuple[Any, Any]:
    """Return (full pages, tokens in the page after them). Every sum below is continuous where a page fills up."""
    num_full = namespace(length).floor(length / page_len)
    return num_full, length - num_full * page_len


def _sum_tails(first_len: Any, last_len: Any, page_len: int) -> Any:
    """Sum tail(S), the tokens in the newest page, over S = first_len + 1 .. last_len."""
    (first_full, first_tail), (last_full, last_tail) = _split(first_len, page_len), _split(last_len, page_len)
    return (last_full - first_full) * _triangle(float(page_len)) + _triangle(last_tail) - _triangle(first_tail)


def _sum_new_pages(first_len: Any, last_len: Any, page_len: int) -> Any:
    """Sum the pages begun since the one after first_len's full pages, over S = first_len + 1 .. last_len."""
    (first_full, _), (last_full, last_tail) = _split(first_len, page_len), _split(last_len, page_len)
    num_new = last_full - first_full
    return page_len * num_new * (num_new - 1.0) / 2 + last_tail * num_new
