"""Page accounting: no page has two owners who both write it, none is lost, and shared prefixes are found again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.attention import SCRATCH_PAGE, PagePool, PrefixCache

PAGE_LEN = 2
Texts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=12)


def test_pages_are_handed_out_once_until_all_holders_let_go():
    pool = PagePool(5)
    first = pool.take(2)
    pool.share(first[:1])
    second = pool.take(2)
    assert sorted(first + second) == [1, 2, 3, 4]  # never the scratch page
    pool.release(first)
    assert (pool.num_free, pool.num_held) == (1, 3)
    assert pool.take(1) == first[1:]
    with pytest.raises(ValueError, match="wanted 1 pages; 0 are free"):
        pool.take(1)
    with pytest.raises(ValueError, match="num_pages must be at least 2, one of them scratch; got 1"):
        PagePool(1)
    with pytest.raises(AssertionError, match="released more often than held"):
        pool.release([SCRATCH_PAGE])


@given(texts=Texts, num_evicted=st.lists(st.integers(0, 4), min_size=12, max_size=12))
def test_what_is_found_has_the_same_tokens_and_nothing_leaks(texts: list[list[int]], num_evicted: list[int]):
    """Against the plain rule: a page may be shared exactly if all tokens up to its end are equal."""
    pool = PagePool(200)
    prefixes = PrefixCache(pool, page_len=PAGE_LEN)
    said: dict[int, tuple[int, ...]] = {}  # page: all tokens up to its end
    for text, num_pages in zip(texts, num_evicted, strict=False):
        found = prefixes.match(text)
        assert [said[page] for page in found] == [tuple(text[: PAGE_LEN * (at + 1)]) for at in range(len(found))]
        pool.share(found)
        own = pool.take(-(-len(text) // PAGE_LEN) - len(found))
        pages = [*found, *own]
        prefixes.insert(text, pages)
        for at in range(len(text) // PAGE_LEN):
            said[pages[at]] = tuple(text[: PAGE_LEN * (at + 1)])
        assert prefixes.match(text) == pages[: len(text) // PAGE_LEN]
        pool.release(pages)
        held = pool.num_held
        assert prefixes.evict(num_pages) == held - pool.num_held == min(num_pages, held)
    prefixes.evict(pool.num_held)
    assert pool.num_held == 0


def test_a_prefix_that_somebody_reads_is_not_evicted():
    pool = PagePool(8)
    prefixes, pages = PrefixCache(pool, page_len=PAGE_LEN), pool.take(3)
    prefixes.insert([1, 2, 3, 4, 5, 6], pages)
    pool.release(pages[1:])
    assert prefixes.evict(3) == 2  # the leaves; the first page has another holder
    assert prefixes.match([1, 2, 3, 4]) == pages[:1]


def test_the_longest_unused_prefix_goes_first():
    pool = PagePool(8)
    prefixes, (one, other) = PrefixCache(pool, page_len=PAGE_LEN), pool.take(2)
    prefixes.insert([1, 1], [one])
    prefixes.insert([2, 2], [other])
    pool.release([one, other])
    prefixes.match([1, 1])
    prefixes.evict(1)
    assert prefixes.match([1, 1]) == [one]
    assert prefixes.match([2, 2]) == []
