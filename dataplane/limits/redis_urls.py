"""The forms of `REDIS_URL`, read without connecting to anything.

    redis://[user:password@]host:6379[,host2:6379…][/0]      one server, or nodes of a Cluster
    rediss://…                                               the same over TLS
    unix://[user:password@]/path[?db=0]                      a server on this machine
    redis+sentinel://[user:password@]host:26379[,host2:26379…]/<name of the primary>[/<db>]
    rediss+sentinel://…                                      sentinels and servers over TLS

User and password are those of the servers. Sentinels have their own, if any, as the parameters
`sentinel_username` and `sentinel_password`; whatever other parameters there are (`ssl_ca_certs`)
belong to the client library and hold for both.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_SENTINEL: Final = "+sentinel"
_SCHEMES: Final = ("redis", "rediss", f"redis{_SENTINEL}", f"rediss{_SENTINEL}", "unix")
_SERVER_PORT: Final = 6379
_SENTINEL_PORT: Final = 26_379
_MAX_PORT: Final = 65_535

Address = tuple[str, int]


class RedisMode(StrEnum):
    """How counters are spread over hash tags; `topology` says what each means."""

    SINGLE = "single"
    ORG = "org"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL, taken apart; it may hold passwords.

    Attributes:
        scheme: `redis`, `rediss` or `unix`: how servers are talked to.
        text: The whole URL, as it was given.
        addresses: Of servers or sentinels; none for a socket file.
        primary_name: What the sentinels call the primary; empty without sentinels.
        db: Which database of the server.
    """

    scheme: str
    text: str = field(repr=False)
    addresses: tuple[Address, ...] = ()
    primary_name: str = ""
    db: int = 0
    _userinfo: str = field(default="", repr=False)
    _sentinel_userinfo: str = field(default="", repr=False)
    _parameters: str = field(default="", repr=False)

    @property
    def is_cluster(self) -> bool:
        """Return whether it names several servers, which only nodes of a Cluster can be."""
        return len(self.addresses) > 1 and not self.primary_name

    def server(self, address: Address) -> str:
        """Return the URL of one server."""
        return self._at(self._userinfo, address, self.db)

    def sentinel(self, address: Address) -> str:
        """Return the URL of one sentinel."""
        return self._at(self._sentinel_userinfo, address, 0)

    def _at(self, userinfo: str, address: Address, db: int) -> str:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        joint = "@" if userinfo else ""
        return f"{self.scheme}://{userinfo}{joint}{host}:{address[1]}/{db}{self._parameters}"


def read_redis_url(text: str) -> RedisUrl:
    """Return what a URL says.

    Raises:
        ValueError: It has none of the forms above. The text says what is wrong and never quotes
            the URL: that may hold a password.
    """
    scheme, separator, _ = text.partition("://")
    if scheme not in _SCHEMES or not separator:
        raise ValueError(
            f"it must begin with one of {', '.join(f'{each}://' for each in _SCHEMES)}"
        )
    if scheme == "unix":
        return RedisUrl(scheme, text)
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("it is no URL") from None
    userinfo, _, hosts = parts.netloc.rpartition("@")
    is_sentinel = scheme.endswith(_SENTINEL)
    given = parse_qsl(parts.query, keep_blank_values=True)
    own = {name: value for name, value in given if is_sentinel and name.startswith("sentinel_")}
    others = [(name, value) for name, value in given if name not in own]
    path = [unquote(part) for part in parts.path.split("/") if part]
    primary_name = _primary_name(path) if is_sentinel else ""
    port = _SENTINEL_PORT if is_sentinel else _SERVER_PORT
    url = RedisUrl(
        scheme=scheme.removesuffix(_SENTINEL),
        text=text,
        addresses=tuple(_address(each, port) for each in hosts.split(",")),
        primary_name=primary_name,
        db=_db(path[1:] if is_sentinel else path),
        _userinfo=userinfo,
        _sentinel_userinfo=_userinfo_of(own),
        _parameters=f"?{urlencode(others)}" if others else "",
    )
    if url.is_cluster and url.db:
        raise ValueError("several servers are nodes of a Cluster, which has no database but 0")
    return url


def _primary_name(path: list[str]) -> str:
    if not path:
        raise ValueError("after the sentinels comes the name of their primary: …/<name>")
    return path[0]


def _db(path: list[str]) -> int:
    if not path:
        return 0
    if len(path) > 1 or not (path[0].isascii() and path[0].isdigit()):
        raise ValueError("a database is a number, and the last part of the path")
    return int(path[0])


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or (port is not None and not 0 < port <= _MAX_PORT):
        raise ValueError("servers are given as host:port, with commas between them")
    return host, port or default_port


def _userinfo_of(own: dict[str, str]) -> str:
    unknown = own.keys() - {"sentinel_username", "sentinel_password"}
    if unknown:
        raise ValueError(f"there is no parameter {', '.join(sorted(unknown))}")
    user, password = own.get("sentinel_username", ""), own.get("sentinel_password", "")
    if user and not password:
        raise ValueError("sentinel_username wants a sentinel_password")
    return f"{quote(user, safe='')}:{quote(password, safe='')}" if password else ""
