import pytest

from controlplane.cli.endpoints import DialectName, ProviderKind, base_urls, has_bare_url

OPENAI, ANTHROPIC, GOOGLE = DialectName.OPENAI, DialectName.ANTHROPIC, DialectName.GOOGLE


@pytest.mark.parametrize("kind", ProviderKind)
def test_a_bare_url_has_a_meaning_for_every_kind(kind: ProviderKind) -> None:
    assert base_urls(kind, ["https://up.example"])


@pytest.mark.parametrize(
    ("kind", "dialect"),
    [
        (ProviderKind.OPENAI, OPENAI),
        (ProviderKind.AZURE_OPENAI, OPENAI),
        (ProviderKind.OPENAI_COMPATIBLE, OPENAI),
        (ProviderKind.ANTHROPIC, ANTHROPIC),
        (ProviderKind.GOOGLE, GOOGLE),
    ],
)
def test_a_kind_with_one_dialect_takes_a_bare_url_as_it_stands(
    kind: ProviderKind, dialect: DialectName
) -> None:
    assert base_urls(kind, ["http://127.0.0.1:9/any/path/"]) == {
        dialect: "http://127.0.0.1:9/any/path"
    }


@pytest.mark.parametrize("kind", [ProviderKind.MOCK, ProviderKind.DIGITALOCEAN, ProviderKind.HTTP])
@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_kind_with_two_dialects_finds_both_under_one_host(kind: ProviderKind, url: str) -> None:
    assert base_urls(kind, [url]) == {OPENAI: "http://h:1/v1", ANTHROPIC: "http://h:1"}


def test_a_named_dialect_takes_its_url_as_it_stands() -> None:
    given = ["openai=http://h:1/a", "google=http://h:1/b"]

    assert base_urls(ProviderKind.MOCK, given) == {OPENAI: "http://h:1/a", GOOGLE: "http://h:1/b"}
    assert not has_bare_url(given)
    assert has_bare_url([*given, "http://h:1"])


@pytest.mark.parametrize(
    "texts",
    [
        ["ftp://h"],
        ["h:1"],
        ["http://"],
        ["http://h:99999"],
        ["http://h/a b"],
        ["http://h/?key=1"],
        ["http://h/#x"],
        ["cohere=http://h"],
        ["openai="],
        ["http://ü.example"],
        ["openai=http://h/1", "openai=http://h/2"],
        ["http://h", "anthropic=http://h"],
    ],
)
def test_what_is_no_base_url_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="base URL"):
        base_urls(ProviderKind.MOCK, texts)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="holds no credentials") as refusal:
        base_urls(ProviderKind.OPENAI, ["https://user:hunter2@h/v1"])

    assert "hunter2" not in str(refusal.value)
