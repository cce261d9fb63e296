from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.client_addresses import (
    FORWARDED_FOR,
    MAX_HOPS,
    ClientAddresses,
    address_prefix,
)

TRUSTED = ("10.0.0.0/8", "192.0.2.7", "fd00::/8", "::ffff:172.16.0.0/108")
PROXY, OTHER_PROXY, PROXY6 = "10.0.0.2", "10.9.9.9", "fd00::2"
CLIENT, CLIENT6 = "203.0.113.9", "2001:db8:7::9"
INVENTED = "198.51.100.66"

# Peer, header, answer; with the proxies above and x-forwarded-for.
FORWARDED = {
    # Who is not trusted is itself.
    "a stranger without a header is itself": (CLIENT, None, CLIENT),
    "a stranger cannot name another address": (CLIENT, INVENTED, CLIENT),
    "a stranger cannot name one of our proxies": (CLIENT, PROXY, CLIENT),
    "a stranger cannot pretend a chain": (CLIENT, f"{INVENTED}, {PROXY}", CLIENT),
    "a stranger cannot become nobody": (CLIENT, "", CLIENT),
    "a stranger's IPv6 address is canonical": ("2001:DB8:7:0::9", INVENTED, CLIENT6),
    "a stranger beside a trusted network is not in it": ("11.0.0.2", INVENTED, "11.0.0.2"),
    "a stranger beside a trusted address is not it": ("192.0.2.8", INVENTED, "192.0.2.8"),
    "a stranger whose IPv6 number is a proxy's IPv4 number is not it": (
        "::a00:2",
        INVENTED,
        "::a00:2",
    ),
    "a peer on a socket file has no address": ("", CLIENT, ""),
    "a peer that is no address has none": ("unix:/run/gateway", CLIENT, ""),
    # One proxy.
    "a proxy names its client": (PROXY, CLIENT, CLIENT),
    "a proxy that is trusted by its address names its client": ("192.0.2.7", CLIENT, CLIENT),
    "a proxy on IPv6 names its client": (PROXY6, CLIENT, CLIENT),
    "a proxy in IPv4-mapped form names its client": ("::ffff:10.0.0.2", CLIENT, CLIENT),
    "a proxy in a network given IPv4-mapped names its client": ("172.17.0.1", CLIENT, CLIENT),
    "a proxy with a zone names its client": ("fd00::2%eth0", CLIENT, CLIENT),
    "a proxy without the header is the caller itself": (PROXY, None, PROXY),
    "a proxy with an empty header is the caller itself": (PROXY, "", PROXY),
    "a proxy with spaces in the header is the caller itself": (PROXY, " \t ", PROXY),
    "a proxy with commas alone in the header is the caller itself": (PROXY, ",, ,", PROXY),
    "what the client wrote stays left of what the proxy says": (
        PROXY,
        f"{INVENTED}, {CLIENT}",
        CLIENT,
    ),
    "a long invented chain changes nothing": (
        PROXY,
        ", ".join([INVENTED] * 500 + [CLIENT]),
        CLIENT,
    ),
    "an invented chain of proxies changes nothing": (
        PROXY,
        f"{INVENTED}, {PROXY}, {OTHER_PROXY}, {CLIENT}",
        CLIENT,
    ),
    "a client that names a proxy of ours gains nothing": (PROXY, f"{PROXY}, {CLIENT}", CLIENT),
    "garbage from the client changes nothing": (PROXY, f'"]%:,;=\x00\xff, {CLIENT}', CLIENT),
    "a client that sends the header twice gains nothing": (
        PROXY,
        f"{INVENTED}, {INVENTED}, {CLIENT}",
        CLIENT,
    ),
    "a client that ends its header with a comma gains nothing": (
        PROXY,
        f"{INVENTED},, {CLIENT}",
        CLIENT,
    ),
    "a client that opens quotes gains nothing": (PROXY, f'"{INVENTED}, {CLIENT}', CLIENT),
    "a client that opens a bracket gains nothing": (PROXY, f"[{INVENTED}, {CLIENT}", CLIENT),
    # Chains.
    "two proxies name the client": (PROXY, f"{CLIENT}, {OTHER_PROXY}", CLIENT),
    "three proxies of both families name the client": (
        PROXY,
        f"{CLIENT6}, 192.0.2.7, {PROXY6}",
        CLIENT6,
    ),
    "behind two proxies what the client wrote stays left": (
        PROXY,
        f"{INVENTED}, {CLIENT}, {OTHER_PROXY}",
        CLIENT,
    ),
    "the first hop that is not trusted is the client, though trusted ones are left of it": (
        PROXY,
        f"{OTHER_PROXY}, {CLIENT}, {OTHER_PROXY}",
        CLIENT,
    ),
    "a call from within is from the farthest proxy": (
        PROXY,
        f"10.1.1.1, {OTHER_PROXY}",
        "10.1.1.1",
    ),
    "a call from a proxy itself is the proxy's": (PROXY, OTHER_PROXY, OTHER_PROXY),
    # What is no address ends the walk.
    "an unknown caller is the proxy that does not know it": (
        PROXY,
        f"{INVENTED}, unknown, {OTHER_PROXY}",
        OTHER_PROXY,
    ),
    "an obfuscated caller is the proxy that hides it": (
        PROXY,
        f"{INVENTED}, _hidden, {OTHER_PROXY}",
        OTHER_PROXY,
    ),
    "an unknown caller of the nearest proxy is that proxy": (PROXY, f"{INVENTED}, unknown", PROXY),
    "a caller on a socket file is the proxy": (PROXY, f"{INVENTED}, unix:", PROXY),
    "a name is no address": (PROXY, f"{INVENTED}, localhost", PROXY),
    "a number is no address": (PROXY, f"{INVENTED}, 3405803785", PROXY),
    "a short address is none": (PROXY, f"{INVENTED}, 203.0.113", PROXY),
    "an octet beyond 255 is none": (PROXY, f"{INVENTED}, 203.0.113.256", PROXY),
    "an octet with a leading zero is none": (PROXY, f"{INVENTED}, 203.0.113.09", PROXY),
    "a network is no address": (PROXY, f"{INVENTED}, 203.0.113.0/24", PROXY),
    "digits of other scripts are none": (PROXY, f"{INVENTED}, 203.0.113.\u0669", PROXY),
    "two addresses without a comma are none": (PROXY, f"{INVENTED}, {CLIENT} {CLIENT}", PROXY),
    "a standard Forwarded value is no entry here": (PROXY, f"{INVENTED}, for={CLIENT}", PROXY),
    "an entry with a line end is none": (PROXY, f"{INVENTED}, {CLIENT}\r\n", PROXY),
    "an entry with a hard space is none": (PROXY, f"{INVENTED}, {CLIENT}\xa0", PROXY),
    "an entry with a zero byte is none": (PROXY, f"{INVENTED}, {CLIENT}\x00", PROXY),
    "an endless entry is none": (PROXY, f"{INVENTED}, {'1' * 10_000}", PROXY),
    "an endless zone is none": (PROXY, f"{INVENTED}, fe80::1%{'a' * 10_000}", PROXY),
    # Ways to write an entry.
    "a port is left out": (PROXY, f"{CLIENT}:5678", CLIENT),
    "an IPv6 address may stand bare": (PROXY, CLIENT6, CLIENT6),
    "an IPv6 address may stand in brackets": (PROXY, f"[{CLIENT6}]", CLIENT6),
    "an IPv6 address may have a port": (PROXY, f"[{CLIENT6}]:443", CLIENT6),
    "quotes are left out": (PROXY, f'"{CLIENT}"', CLIENT),
    "quotes around brackets and a port are left out": (PROXY, f'"[{CLIENT6}]:443"', CLIENT6),
    "spaces and tabs around are left out": (PROXY, f"{INVENTED} ,\t {CLIENT} \t", CLIENT),
    "no space is needed": (PROXY, f"{INVENTED},{CLIENT}", CLIENT),
    "an empty item is passed over": (PROXY, f"{CLIENT}, , {OTHER_PROXY},", CLIENT),
    "a zone is left out": (PROXY, "fe80::1%eth0", "fe80::1"),
    "a zone in brackets is left out": (PROXY, "[fe80::1%25eth0]:80", "fe80::1"),
    "an IPv4-mapped client is its IPv4 address": (PROXY, "::ffff:203.0.113.9", CLIENT),
    "an IPv4-mapped client in hexadecimal is its IPv4 address": (PROXY, "::ffff:cb00:7109", CLIENT),
    "an IPv4-mapped client may have a port": (PROXY, "[::ffff:203.0.113.9]:9", CLIENT),
    "an IPv4-mapped proxy is trusted as its IPv4 address": (
        PROXY,
        f"{CLIENT}, ::ffff:10.9.9.9",
        CLIENT,
    ),
    "a proxy with a port is trusted": (PROXY, f"{CLIENT}:1, {OTHER_PROXY}:2", CLIENT),
    "a long IPv6 address is made short": (PROXY, "2001:0DB8:0007:0000:0:0:0:0009", CLIENT6),
    "what looks like a port after a bare IPv6 address belongs to it": (
        PROXY,
        "2001:db8::1:443",
        "2001:db8::1:443",
    ),
    # Ways not to.
    "a port without digits is none": (PROXY, f"{INVENTED}, {CLIENT}:", PROXY),
    "a port beyond 65535 is none": (PROXY, f"{INVENTED}, {CLIENT}:65536", PROXY),
    "a port of letters is none": (PROXY, f"{INVENTED}, {CLIENT}:http", PROXY),
    "a port with a sign is none": (PROXY, f"{INVENTED}, {CLIENT}:+80", PROXY),
    "a port before anything is none": (PROXY, f"{INVENTED}, :80", PROXY),
    "brackets that stay open are none": (PROXY, f"{INVENTED}, [{CLIENT6}", PROXY),
    "brackets with something after them are none": (PROXY, f"{INVENTED}, [{CLIENT6}]x", PROXY),
    "brackets without a port after the colon are none": (PROXY, f"{INVENTED}, [{CLIENT6}]:", PROXY),
    "brackets with nothing within are none": (PROXY, f"{INVENTED}, []:80", PROXY),
    "brackets around IPv4 are none": (PROXY, f"{INVENTED}, [{CLIENT}]", PROXY),
    "brackets twice are none": (PROXY, f"{INVENTED}, [[{CLIENT6}]]", PROXY),
    "quotes that stay open are none": (PROXY, f'{INVENTED}, "{CLIENT}', PROXY),
    "quotes with nothing within are none": (PROXY, f'{INVENTED}, ""', PROXY),
    "a quote alone is none": (PROXY, f'{INVENTED}, "', PROXY),
    "an IPv4 address with a zone is none": (PROXY, f"{INVENTED}, {CLIENT}%eth0", PROXY),
}

# Header, its value, answer; the peer is a proxy.
SINGLE = {
    "the one address is the client's": ("x-real-ip", CLIENT, CLIENT),
    "an IPv6 address is canonical": ("cf-connecting-ip", "2001:DB8:7::0:9", CLIENT6),
    "a port is left out": ("x-real-ip", f"{CLIENT}:80", CLIENT),
    "an IPv4-mapped address is IPv4": ("cf-connecting-ip", f"::ffff:{CLIENT}", CLIENT),
    "of several values the last is the proxy's": ("x-real-ip", f"{INVENTED}, {CLIENT}", CLIENT),
    "a last value that is empty is the proxy's word too": ("x-real-ip", f"{INVENTED}, ", PROXY),
    "a last value that is no address is the proxy's word too": (
        "cf-connecting-ip",
        f"{INVENTED}, unknown",
        PROXY,
    ),
    "an absent header leaves the peer": ("x-real-ip", None, PROXY),
    "an empty header leaves the peer": ("x-real-ip", "", PROXY),
    "a name leaves the peer": ("cf-connecting-ip", "example.com", PROXY),
    "an address of ours is taken at its word": ("x-real-ip", OTHER_PROXY, OTHER_PROXY),
}

LISTS = st.lists(
    st.one_of(
        st.sampled_from(
            [PROXY, OTHER_PROXY, PROXY6, INVENTED, "unknown", "", '"', "[", "]:1", "%"]
        ),
        st.ip_addresses().map(str),
        st.text(max_size=30),
    ),
    max_size=80,
).map(",".join)
STRANGERS = st.ip_addresses().map(str).filter(lambda text: not is_trusted(text))


def addresses(header: str = FORWARDED_FOR) -> ClientAddresses:
    return ClientAddresses(TRUSTED, header)


def is_trusted(text: str) -> bool:
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    networks = ("10.0.0.0/8", "192.0.2.7", "fd00::/8", "172.16.0.0/12")
    return any(address in ip_network(each) for each in networks)


def canonical(text: str) -> str:
    return ClientAddresses(()).of(text, {})


@pytest.mark.parametrize(("peer", "value", "client"), FORWARDED.values(), ids=FORWARDED)
def test_behind_proxies(peer: str, value: str | None, client: str) -> None:
    headers = {} if value is None else {FORWARDED_FOR: value}

    assert addresses().of(peer, headers) == client


@pytest.mark.parametrize(("header", "value", "client"), SINGLE.values(), ids=SINGLE)
def test_behind_a_proxy_that_sets_one_address(header: str, value: str | None, client: str) -> None:
    headers = {} if value is None else {header: value}

    assert addresses(header).of(PROXY, headers) == client
    assert addresses(header).of(CLIENT, headers) == CLIENT


@pytest.mark.parametrize("header", [FORWARDED_FOR, "x-real-ip", "cf-connecting-ip"])
def test_only_the_header_that_the_operator_named_is_read(header: str) -> None:
    every = [FORWARDED_FOR, "x-real-ip", "cf-connecting-ip", "forwarded", "true-client-ip"]
    others = {each: INVENTED for each in every if each != header}

    assert addresses(header).of(PROXY, others) == PROXY
    assert addresses(header.upper()).of(PROXY, {**others, header: CLIENT}) == CLIENT


def test_without_trusted_proxies_everybody_is_itself() -> None:
    nobody = ClientAddresses(())

    for peer in (PROXY, CLIENT, CLIENT6, "127.0.0.1", "::1"):
        assert nobody.of(peer, {FORWARDED_FOR: INVENTED}) == peer


def test_every_hop_is_looked_at_up_to_a_bound() -> None:
    within = ", ".join([CLIENT, *[OTHER_PROXY] * (MAX_HOPS - 1)])
    beyond = ", ".join([CLIENT, *[OTHER_PROXY] * MAX_HOPS])

    assert addresses().of(PROXY, {FORWARDED_FOR: within}) == CLIENT
    assert addresses().of(PROXY, {FORWARDED_FOR: beyond}) == OTHER_PROXY


@pytest.mark.parametrize("bad", ["", "10.0.0.0/33", "proxy", "10.0.0.0/8/8", "fd00::/129"])
def test_a_proxy_that_is_no_network_is_an_error(bad: str) -> None:
    with pytest.raises(ValueError, match="IPv4 or IPv6 network"):
        ClientAddresses((bad,))


@given(peer=STRANGERS, value=LISTS)
def test_a_stranger_is_itself_whatever_it_writes(peer: str, value: str) -> None:
    assert addresses().of(peer, {FORWARDED_FOR: value}) == canonical(peer)


@given(written=LISTS, client=STRANGERS, hops=st.integers(0, 5))
def test_nothing_that_a_client_writes_moves_what_the_proxies_add(
    written: str, client: str, hops: int
) -> None:
    added = ", ".join([client, *[OTHER_PROXY] * hops])

    assert addresses().of(PROXY, {FORWARDED_FOR: f"{written}, {added}"}) == canonical(client)
    assert addresses().of(PROXY, {FORWARDED_FOR: added}) == canonical(client)


@given(written=LISTS, hidden=st.sampled_from(["unknown", "_x", "unix:", "a.b", "1.2.3", "::1::"]))
def test_nothing_that_a_client_writes_is_believed_where_a_proxy_hides_it(
    written: str, hidden: str
) -> None:
    value = f"{written}, {hidden}, {OTHER_PROXY}"

    assert addresses().of(PROXY, {FORWARDED_FOR: value}) == OTHER_PROXY


@given(written=LISTS, client=st.ip_addresses().map(str))
def test_nothing_that_a_client_writes_moves_a_single_address(written: str, client: str) -> None:
    found = addresses("x-real-ip").of(PROXY, {"x-real-ip": f"{written}, {client}"})

    assert found == canonical(client)


@given(value=LISTS)
def test_the_answer_is_always_an_address(value: str) -> None:
    found = addresses().of(PROXY, {FORWARDED_FOR: value})

    assert found == canonical(found) != ""


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:DB8:0:1::", "2001:db8:0:1::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:cb00:7109", "203.0.113.9"),
        ("", ""),
        ("unknown", ""),
        ("203.0.113.9:80", ""),
        ("[::1]", ""),
        ("2001:db8::/64", ""),
    ],
)
def test_an_address_is_counted_under_its_prefix(address: str, prefix: str) -> None:
    assert address_prefix(address) == prefix


@given(first=st.ip_addresses(v=6), last=st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_subscriber_are_counted_as_one(first: IPv6Address, last: int) -> None:
    other = IPv6Address(int(first) >> 64 << 64 | last)

    if first.ipv4_mapped is None and other.ipv4_mapped is None:
        assert address_prefix(str(first)) == address_prefix(str(other))
    assert address_prefix(str(IPv6Address(int(first) ^ 1 << 64))) != address_prefix(str(first))


@given(address=st.ip_addresses(v=4))
def test_an_ipv4_address_is_counted_the_same_in_either_form(address: IPv4Address) -> None:
    assert address_prefix(f"::ffff:{address}") == address_prefix(str(address)) == str(address)
