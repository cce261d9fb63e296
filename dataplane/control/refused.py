"""Why a transfer is refused whole."""

from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb

MAX_PROBLEMS: Final = 20
# Ids are the peer's choice; an answer must fit into one message.
_MAX_PROBLEM_CHARACTERS: Final = 500


class RefusedTransferError(Exception):
    """A transfer is refused whole; the old configuration stays.

    Attributes:
        reason: As the contract names it. POSITION asks for a FULL.
        problems: What is wrong, one line each, at most 20, each at most 500 characters.
    """

    def __init__(self, reason: pb.NackReason.ValueType, *problems: str) -> None:
        self.reason = reason
        self.problems = tuple(each[:_MAX_PROBLEM_CHARACTERS] for each in problems[:MAX_PROBLEMS])
        super().__init__("; ".join(self.problems))
