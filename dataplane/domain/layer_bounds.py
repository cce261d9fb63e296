"""How many layers a call can meet at most, so that a caller with too many is refused from the start.

A caller may call from any address, at any endpoint, with any model and at any time: its own layers
count as they are, of addresses, endpoints and models those of the one that has the most, and of
temporary limits all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from dataplane.domain.entitlements import Entitlements, most_layers_of
from dataplane.domain.limiting import MAX_LAYERS, SubjectKind
from dataplane.domain.principals import LimitEntry, Principal, SubjectLimits, Tier

_Shape = frozenset[tuple[tuple[str, str], bool]]


@dataclass(slots=True)
class LayerBounds:
    """The most layers of each caller of a configuration.

    Tell it of all that is limited with `note`, then ask of callers. It is work on a whole
    configuration, cut in steps that are small each.
    """

    entitlements: Entitlements
    _endpoint: int = 0
    _model: int = 0
    # Most addresses are limited alike.
    _addresses: dict[_Shape, SubjectLimits] = field(
        default_factory=lambda: {frozenset(): SubjectLimits()}
    )
    _of_addresses: dict[str, int] = field(default_factory=dict)
    _problems: dict[tuple[SubjectKind, str, str], str | None] = field(default_factory=dict)

    def note(self, subject: str, configured: SubjectLimits) -> None:
        """Take what is configured for a subject, named as in `Entitlements.limits`, into account."""
        match subject.partition(":")[0]:
            case SubjectKind.IP:
                shape = frozenset((each.counted, each.is_unlimited) for each in _all(configured))
                self._addresses.setdefault(shape, configured)
            case SubjectKind.ENDPOINT:
                self._endpoint = max(self._endpoint, most_layers_of(configured))
            case SubjectKind.MODEL:
                self._model = max(self._model, most_layers_of(configured))

    def problem_of(self, principal: Principal) -> str | None:
        """Return why no call of `principal` could be admitted, or None."""
        own = f"{principal.kind}:{principal.principal_id}"
        is_limited = own in self.entitlements.limits
        alike = principal.kind, principal.user.user_id, own if is_limited else principal.tier
        # Callers of one user and tier that have no limits of their own have the same number.
        if alike not in self._problems:
            self._problems[alike] = self._problem_of(principal)
        return self._problems[alike]

    def _problem_of(self, principal: Principal) -> str | None:
        counts = {
            **self.entitlements.most_layers(principal),
            SubjectKind.IP: self._of_address(principal.tier),
            SubjectKind.ENDPOINT: self._endpoint,
            SubjectKind.MODEL: self._model,
        }
        most = sum(counts.values())
        if most <= MAX_LAYERS:
            return None
        parts = ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
        return f"{most} limits can apply to one call of it ({parts}); at most {MAX_LAYERS} may"

    def _of_address(self, tier_name: str) -> int:
        most = self._of_addresses.get(tier_name)
        if most is None:
            tier = self.entitlements.tiers.get(tier_name, Tier(""))
            counts = (most_layers_of(each, tier.ip_limits) for each in self._addresses.values())
            most = self._of_addresses[tier_name] = max(counts)
        return most


def _all(configured: SubjectLimits) -> Iterator[LimitEntry]:
    yield from configured.own
    yield from (each.entry for each in configured.temporary)
