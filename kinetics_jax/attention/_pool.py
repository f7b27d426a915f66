"""Who holds which page: reference counts of a page pool, and the prompts whose pages may be shared. Pure Python.

Called by the engine in `sampling`, between steps; nothing here touches a device.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import final

SCRATCH_PAGE = 0
"""Page that nobody holds: rows of a batch without a sequence write there."""


@final
class PagePool:
    """Count the holders of every page; a page without one is free.

    Page 0 is never handed out: see `SCRATCH_PAGE`.

    Args:
        num_pages: Pages of the pool, the scratch page included.

    Raises:
        ValueError: If there is no page beside the scratch page.

    Example:
        >>> pool = PagePool(4)
        >>> pages = pool.take(2)
        >>> pool.share(pages[:1])
        >>> pool.release(pages)  # the first has another holder
        >>> pool.num_free
        2
    """

    def __init__(self, num_pages: int):
        if num_pages < 2:
            raise ValueError(f"num_pages must be at least 2, one of them scratch; got {num_pages}")
        self._num_holders = [0] * num_pages
        self._free = list(range(num_pages - 1, SCRATCH_PAGE, -1))

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        """Pages that somebody holds."""
        return len(self._num_holders) - 1 - len(self._free)

    def num_holders(self, page: int) -> int:
        """Return how many hold the page."""
        return self._num_holders[page]

    def take(self, num_pages: int) -> list[int]:
        """Hand out free pages, each with one holder.

        Raises:
            ValueError: If fewer are free.
        """
        if num_pages > self.num_free:
            raise ValueError(f"wanted {num_pages} pages; {self.num_free} are free. Release or evict some first.")
        pages = [self._free.pop() for _ in range(num_pages)]
        for page in pages:
            self._num_holders[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to each page."""
        for page in pages:
            assert self._num_holders[page] > 0, f"page {page} is free and cannot be shared"
            self._num_holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take a holder from each page; a page without one is free again."""
        for page in pages:
            assert self._num_holders[page] > 0, f"page {page} is released more often than held"
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0:
                self._free.append(page)


@final
class PrefixCache:
    """Remember full pages by the tokens in them and before them, so that a common prefix is prefilled once.

    A page is found by its parent page and its own tokens: a tree of pages. The cache is one holder of each of its
    pages; `evict` gives back those that nobody else holds, the longest unused first, leaves before their parents.

    Args:
        pool: Where the pages come from.
        page_len: Tokens in a page, P.

    Example:
        >>> pool = PagePool(8)
        >>> prefixes, pages = PrefixCache(pool, page_len=2), pool.take(2)
        >>> prefixes.insert([1, 2, 3, 4, 5], pages)
        >>> prefixes.match([1, 2, 9, 9]) == pages[:1]
        True
    """

    def __init__(self, pool: PagePool, *, page_len: int):
        self._pool = pool
        self._page_len = page_len
        self._pages: OrderedDict[tuple[int, tuple[int, ...]], int] = OrderedDict()  # longest unused first
        self._num_children: dict[int, int] = {}

    def match(self, token_ids: Sequence[int]) -> list[int]:
        """Return the cached pages that begin the text, in order; the caller shares those that it keeps."""
        pages, parent = [], SCRATCH_PAGE
        for key in self._keys(token_ids):
            page = self._pages.get((parent, key))
            if page is None:
                break
            self._pages.move_to_end((parent, key))
            pages.append(page)
            parent = page
        return pages

    def insert(self, token_ids: Sequence[int], pages: Sequence[int]) -> None:
        """Remember the full pages of a text; of two pages with the same content the first one stays."""
        parent = SCRATCH_PAGE
        for key, page in zip(self._keys(token_ids), pages, strict=False):
            known = self._pages.get((parent, key))
            if known is None:
                self._pool.share([page])
                self._pages[parent, key] = page
                self._num_children[page] = 0
                if parent != SCRATCH_PAGE:
                    self._num_children[parent] += 1
                known = page
            parent = known

    def evict(self, num_pages: int) -> int:
        """Give back up to `num_pages` pages that nobody else holds, and return how many those were."""
        num_freed = 0
        while num_freed < num_pages:
            key = next((key for key, page in self._pages.items() if self._is_idle(page)), None)
            if key is None:
                break
            page = self._pages.pop(key)
            del self._num_children[page]
            if key[0] != SCRATCH_PAGE:
                self._num_children[key[0]] -= 1
            self._pool.release([page])
            num_freed += 1
        return num_freed

    def _is_idle(self, page: int) -> bool:
        return self._num_children[page] == 0 and self._pool.num_holders(page) == 1

    def _keys(self, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
        num_full = len(token_ids) // self._page_len
        return [tuple(token_ids[at * self._page_len : (at + 1) * self._page_len]) for at in range(num_full)]
