"""Join tokens and names that both planes must write and read alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.join_tokens import SECRET_BYTES, join_token, secret_text
from controlplane.pki.certificates import SERVER_NAME
from dataplane.control.identity import CONTROL_PLANE_NAME
from dataplane.domain.join_tokens import JoinToken, is_join_token, read_join_token


@given(
    secret=st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
    authority=st.binary(min_size=1, max_size=800),
    addresses=st.lists(st.text(min_size=1, max_size=260), min_size=1, max_size=10),
    node_id=st.from_regex(r"[A-Za-z0-9._-]{0,64}", fullmatch=True),
)
def test_what_one_plane_writes_the_other_reads(
    secret: bytes, authority: bytes, addresses: list[str], node_id: str
) -> None:
    text = join_token(secret_text(secret), authority, addresses, node_id)

    assert is_join_token(text)
    assert read_join_token(text) == JoinToken(
        secret_text(secret), authority, tuple(addresses), node_id
    )


@given(st.text(max_size=300))
def test_any_other_text_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="the join token is damaged: was all of it copied"):
        read_join_token(f"tkj_{text}")


def test_both_planes_call_a_control_plane_the_same() -> None:
    assert SERVER_NAME == CONTROL_PLANE_NAME
