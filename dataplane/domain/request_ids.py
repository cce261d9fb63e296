"""Request ids: UUIDv7 (RFC 9562, section 5.7), so that ids sort by time and tell it."""


def request_id(now_ms: int, random_bytes: bytes) -> str:
    """Return a UUIDv7 in its text form.

    Args:
        now_ms: Unix milliseconds.
        random_bytes: 10 fresh random bytes; 74 bits of them are used.
    """
    value = (now_ms & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(random_bytes, "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def began_at_ms(request_id: str) -> int:
    """Return when the request of an id of ours was read, in Unix milliseconds.

    Raises:
        ValueError: It is no UUID in its text form.
    """
    return int(request_id[:8] + request_id[9:13], 16)
