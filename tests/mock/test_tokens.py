from hypothesis import given
from hypothesis import strategies as st

from dataplane.mock.tokens import byte_count, cut_to_tokens, filler, pieces_of, token_count

# Of one to four bytes a character, mixed; lone surrogates are no UTF-8 and cannot arrive.
texts = st.text(st.sampled_from("ab é€語😀\n") | st.characters(exclude_categories=["Cs"]))


@given(texts)
def test_a_split_text_comes_back_whole_with_one_token_in_each_piece(text: str) -> None:
    pieces = list(pieces_of(text))

    assert "".join(pieces) == text
    assert all(pieces)
    assert len(pieces) == token_count(byte_count(text))


@given(texts)
def test_the_pieces_sent_so_far_hold_as_many_tokens_as_there_are_pieces(text: str) -> None:
    sent_bytes = 0
    for number, piece in enumerate(pieces_of(text), start=1):
        sent_bytes += len(piece.encode())
        assert token_count(sent_bytes) == number


@given(texts, st.integers(0, 20))
def test_a_text_is_cut_as_late_as_its_limit_allows(text: str, limit: int) -> None:
    cut = cut_to_tokens(text, limit)

    assert text.startswith(cut)
    assert token_count(byte_count(cut)) == min(limit, token_count(byte_count(text)))
    if cut != text:
        assert byte_count(text[: len(cut) + 1]) > 4 * limit


@given(st.integers(0, 500))
def test_filler_has_exactly_four_bytes_for_each_token(tokens: int) -> None:
    assert len(filler(tokens).encode()) == 4 * tokens
