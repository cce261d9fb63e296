"""Tables of the distribution: former revisions, revocations, who may be a node and who is connected.

None of them is configuration: their rows carry no revision of their own and travel nowhere.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, LargeBinary, SmallInteger
from sqlmodel import Field, SQLModel

from controlplane.store.columns import Json, UtcDateTime, text


class RowVersion(SQLModel, table=True):
    """What a row of the configuration was from a revision on: all its columns as JSON, or None when it was deleted.

    Bytes are in base64, instants in RFC 3339. A credential's sealed secret is left out, so that a rotation leaves nothing
    of the old one behind.
    """

    __tablename__ = "row_versions"

    kind: str = Field(primary_key=True, sa_type=text(32))
    id: str = Field(primary_key=True, sa_type=text(220))
    revision: int = Field(primary_key=True, index=True, sa_type=BigInteger)
    at: datetime = Field(index=True, sa_type=UtcDateTime)
    columns: dict[str, Any] | None = Field(  # Any: JSON
        default=None, sa_type=Json, nullable=True
    )


class RevocationRow(SQLModel, table=True):
    """Something that is out of service for good since the change of `revision`: written in its transaction, kept 7 days.

    `kind` is a number of `config.v1.ResourceKind`. `organization_id` is empty for a device that never had a user.
    """

    __tablename__ = "revocations"

    revision: int = Field(
        primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False}
    )
    kind: int = Field(
        primary_key=True, sa_type=SmallInteger, sa_column_kwargs={"autoincrement": False}
    )
    subject_id: str = Field(primary_key=True, sa_type=text(80))
    organization_id: str = Field(default="", sa_type=text(80))
    terminate_streams: bool = False
    at: datetime = Field(index=True, sa_type=UtcDateTime)


class NodeSession(SQLModel, table=True):
    """A stream that a control plane holds, as it saw the node last; others show it and wait for it in receipts.

    `state` is a serialized `tollkeeper.admin.v1.Node`. A row that was not written for 15 s is of a dead stream.
    """

    __tablename__ = "node_sessions"

    control_plane_id: str = Field(primary_key=True, sa_type=text(64))
    node_id: str = Field(primary_key=True, sa_type=text(128))
    state: bytes = Field(sa_type=LargeBinary)
    heard_at: datetime = Field(index=True, sa_type=UtcDateTime)


class NodeCertificate(SQLModel, table=True):
    """The newest certificate of a node. Apart from the node's row, because renewing it changes no configuration."""

    __tablename__ = "node_certificates"

    node_id: str = Field(primary_key=True, sa_type=text(64))
    serial: str = Field(sa_type=text(64))
    expires_at: datetime = Field(sa_type=UtcDateTime)


class JoinToken(SQLModel, table=True):
    """A token with which one node joins, once; only the digest of its secret is kept.

    After it was used `request_sha256` and `answer` (a serialized EnrollNodeResponse) answer a repetition for 10 minutes.
    """

    __tablename__ = "join_tokens"

    id: str = Field(primary_key=True, sa_type=text(64))
    secret_sha256: bytes = Field(unique=True, sa_type=LargeBinary)
    node_id: str = Field(default="", sa_type=text(64))
    organization_ids: list[str] = Field(default_factory=list, sa_type=Json)
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime = Field(index=True, sa_type=UtcDateTime)
    used_at: datetime | None = Field(default=None, sa_type=UtcDateTime, nullable=True)
    request_sha256: bytes = Field(default=b"", sa_type=LargeBinary)
    answer: bytes = Field(default=b"", sa_type=LargeBinary)


class Authority(SQLModel, table=True):
    """The authority that signs certificates between the planes: its certificate in PEM, and its key sealed under the master key."""

    __tablename__ = "authorities"

    id: str = Field(primary_key=True, sa_type=text(64))
    certificate: str = Field(sa_type=text())
    sealed_key: bytes = Field(sa_type=LargeBinary)
    created_at: datetime = Field(sa_type=UtcDateTime)


DISTRIBUTION: tuple[type[SQLModel], ...] = (
    RowVersion,
    RevocationRow,
    NodeSession,
    NodeCertificate,
    JoinToken,
    Authority,
)
"""Every table of this module."""
