"""Patterns of names: `*` stands for any run of characters, everything else for itself."""


def matches(pattern: str, name: str) -> bool:
    """Return whether the whole of `name` matches `pattern`; letter case counts."""
    head, star, rest = pattern.partition("*")
    if not star:
        return pattern == name
    if not name.startswith(head):
        return False
    position = len(head)
    *middles, tail = rest.split("*")
    for middle in middles:
        found = name.find(middle, position)
        if found < 0:
            return False
        position = found + len(middle)
    return len(name) - position >= len(tail) and name.endswith(tail)


def literal_prefix(pattern: str) -> str:
    """Return what stands before the first `*`."""
    return pattern.partition("*")[0]
