"""Who calls, by which configuration, and who was revoked, for tests of marks."""

from dataplane.domain.limiting import SubjectKind
from dataplane.domain.principals import Organization, Principal, User
from dataplane.domain.revocations import Revocation
from dataplane.domain.snapshot import Position

# A caller: the configuration by which its node let it in, and who it is.
Caller = tuple[Position, Principal]
# Epochs of configurations, in their order.
EARLIER, PRESENT, LATER = (f"t00000000000{number}-aaaaaaaaaaaa" for number in range(3))


def at(revision: int, epoch: str = PRESENT) -> Position:
    return Position(epoch, revision, bytes(32))


def caller_of(
    credential: str = "k_1",
    user: str = "u_1",
    organization: str = "o_1",
    kind: SubjectKind = SubjectKind.KEY,
) -> Principal:
    of = User(user, "alice", Organization(organization, "acme"))
    return Principal(kind, credential, "laptop", of, "r_1")


def subjects_of(principal: Principal) -> list[tuple[str, str]]:
    """Return whoever may be revoked and with it the caller, in the order in which they are looked at."""
    return [
        (principal.kind.value, principal.principal_id),
        ("user", principal.user.user_id),
        ("organization", principal.user.organization.organization_id),
    ]


def revoked(
    subject: tuple[str, str],
    revision: int,
    epoch: str = PRESENT,
    *,
    organization: str = "o_1",
    terminates: bool = False,
) -> Revocation:
    return Revocation(*subject, organization, epoch, revision, terminates)
