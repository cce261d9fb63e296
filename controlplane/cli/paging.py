"""Lists that come in pages."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeVar

from controlplane.cli.output import fail

# The control plane sends at most 4 MiB at once. Some resources may be as long as 20 kB, requests are far shorter.
RESOURCES_PER_PAGE: Final = 100
REQUESTS_PER_PAGE: Final = 1000


class PagedRequest(Protocol):
    """A request for a page."""

    page_size: int
    page_token: str


class PagedResponse(Protocol):
    """A page."""

    next_page_token: str


_Request = TypeVar("_Request", bound=PagedRequest)
_Response = TypeVar("_Response", bound=PagedResponse)
_Item = TypeVar("_Item")


def all_pages(
    fetch: Callable[[_Request], _Response],
    request: _Request,
    items: Callable[[_Response], Iterable[_Item]],
    page_size: int = RESOURCES_PER_PAGE,
) -> Iterator[_Item]:
    """Yield the items of all pages; each page is asked for when the one before is used up."""
    request.page_size = page_size
    while True:
        page = fetch(request)
        yield from items(page)
        if not page.next_page_token:
            return
        if page.next_page_token == request.page_token:
            fail("the control plane answered with the same page twice")
        request.page_token = page.next_page_token
