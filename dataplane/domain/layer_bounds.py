"""How many layers a call can meet at most, so that a caller with too many is refused from the start.

A caller may call from any address, at any endpoint, with any model and at any time: its own layers
count as they are, of addresses, endpoints and models those of the one that has the most, and of
temporary limits all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dataplane.domain.entitlements import Entitlements, most_layers_of
from dataplane.domain.limiting import MAX_LAYERS, SubjectKind
from dataplane.domain.principals import LimitEntry, Principal, SubjectLimits, Tier

_Counted = frozenset[tuple[tuple[str, str], bool]]
# What there is to know of a subject's limits without their figures: of its own and of temporary ones.
_Shape = tuple[_Counted, _Counted]
_NO_LIMITS: Final = SubjectLimits()


class _Alike(NamedTuple):
    """One of those that are limited alike, and how many they are."""

    example: SubjectLimits
    subjects: int


class LimitShapes:
    """In which ways the subjects of each kind are limited: most are limited alike.

    It changes with each subject that is noted; a copy costs as much as there are ways.
    """

    __slots__ = ("_alike",)

    def __init__(self) -> None:
        self._alike: dict[str, dict[_Shape, _Alike]] = {}

    def copy(self) -> "LimitShapes":
        """Return one that changes apart from this one."""
        it = LimitShapes()
        it._alike = {kind: dict(alike) for kind, alike in self._alike.items()}
        return it

    def note(self, subject: str, before: SubjectLimits | None, after: SubjectLimits | None) -> None:
        """Take in that a subject, named as in `Entitlements.limits`, has other limits; None: none."""
        alike = self._alike.setdefault(subject.partition(":")[0], {})
        if after is not None:
            shape = _shape_of(after)
            alike[shape] = _Alike(after, alike[shape].subjects + 1 if shape in alike else 1)
        if before is not None:
            shape = _shape_of(before)
            example, subjects = alike.pop(shape)
            if subjects > 1:
                alike[shape] = _Alike(example, subjects - 1)

    def of(self, kind: SubjectKind) -> Mapping[_Shape, _Alike]:
        """Return the ways in which subjects of a kind are limited, with an example of each."""
        return self._alike.get(kind, {})

    def most_of(self, kind: SubjectKind, defaults: Iterable[LimitEntry] = ()) -> int:
        """Return the most layers that a subject of a kind can have; one without limits counts too."""
        defaults = tuple(defaults)
        counts = (most_layers_of(each.example, defaults) for each in self.of(kind).values())
        return max(counts, default=0)


def are_alike(one: SubjectLimits, other: SubjectLimits) -> bool:
    """Return whether two subjects always have as many layers as each other."""
    return _shape_of(one) == _shape_of(other)


@dataclass(slots=True)
class LayerBounds:
    """The most layers of each caller of a configuration.

    Args:
        entitlements: All limits.
        shapes: Has noted each of them.
    """

    entitlements: Entitlements
    shapes: LimitShapes
    _most_of_endpoints: int = field(init=False)
    _most_of_models: int = field(init=False)
    # The most layers that anybody can have.
    _most: int = field(init=False)
    _of_addresses: dict[str, int] = field(default_factory=dict)
    _problems: dict[tuple[SubjectKind, str, tuple[str, ...]], str | None] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self._most_of_endpoints = self.shapes.most_of(SubjectKind.ENDPOINT)
        self._most_of_models = self.shapes.most_of(SubjectKind.MODEL)
        self._most = self._most_of_anybody()

    @property
    def can_be_exceeded(self) -> bool:
        """Return whether anybody might have too many; if not, nobody need be looked at."""
        return self._most > MAX_LAYERS

    def shared(self) -> tuple[object, ...]:
        """Return all that the number of a caller's layers depends on besides those who call.

        While it stays equal, only those whose own limits, tier or organization changed can have
        more layers than before, or fewer.
        """
        service, tiers = self.entitlements.service, self.entitlements.tiers
        return (
            self._of_everybody(),
            self._most_of_endpoints,
            self._most_of_models,
            frozenset(self.shapes.of(SubjectKind.IP)),
            _counted(service.default_user_limits),
            frozenset(_tier_shape(each) for each in tiers.values()),
        )

    def problem_of(self, principal: Principal) -> str | None:
        """Return why no call of `principal` could be admitted, or None."""
        if not self.can_be_exceeded:
            return None
        user, limits = principal.user, self.entitlements.limits
        subjects = (
            f"organization:{user.organization.organization_id}",
            f"user:{user.user_id}",
            f"{principal.kind}:{principal.principal_id}",
        )
        # Callers of one kind and tier have the same number, but for what they have of their own.
        own = tuple(subject for subject in subjects if subject in limits)
        alike = principal.kind, principal.tier, own
        if alike not in self._problems:
            self._problems[alike] = self._problem_of(principal)
        return self._problems[alike]

    def _problem_of(self, principal: Principal) -> str | None:
        counts = {
            **self.entitlements.most_layers(principal),
            SubjectKind.IP: self._of_address(principal.tier),
            SubjectKind.ENDPOINT: self._most_of_endpoints,
            SubjectKind.MODEL: self._most_of_models,
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
            most = max(
                most_layers_of(_NO_LIMITS, tier.ip_limits),
                self.shapes.most_of(SubjectKind.IP, tier.ip_limits),
            )
            self._of_addresses[tier_name] = most
        return most

    def _of_everybody(self) -> int:
        configured = self.entitlements.limits.get(SubjectKind.GLOBAL, _NO_LIMITS)
        return most_layers_of(configured, self.entitlements.service.default_global_limits)

    def _most_of_anybody(self) -> int:
        """Return a number that nobody's layers exceed: the most of each kind, whoever has them."""
        service, tiers = self.entitlements.service, tuple(self.entitlements.tiers.values())
        credentials = (SubjectKind.KEY, SubjectKind.DEVICE)
        return sum(
            (
                self._of_everybody(),
                self.shapes.most_of(SubjectKind.ORGANIZATION),
                self.shapes.most_of(SubjectKind.USER),
                _most_defaults(
                    (service.default_user_limits, *(each.user_limits for each in tiers))
                ),
                max(self.shapes.most_of(kind) for kind in credentials),
                _most_defaults((*each.credential_limits, *each.device_limits) for each in tiers),
                self.shapes.most_of(SubjectKind.IP),
                _most_defaults(each.ip_limits for each in tiers),
                self._most_of_endpoints,
                self._most_of_models,
            )
        )


def _most_defaults(defaults: Iterable[tuple[LimitEntry, ...]]) -> int:
    # Not their layers: one that is unlimited hides another, and is hidden by a subject's own.
    return max((len({entry.counted for entry in each}) for each in defaults), default=0)


def _shape_of(configured: SubjectLimits) -> _Shape:
    return _counted(configured.own), _counted(each.entry for each in configured.temporary)


def _counted(entries: Iterable[LimitEntry]) -> _Counted:
    return frozenset((each.counted, each.is_unlimited) for each in entries)


def _tier_shape(tier: Tier) -> tuple[object, ...]:
    return (
        tier.name,
        _counted(tier.device_limits),
        _counted(tier.ip_limits),
        _counted(tier.user_limits),
        _counted(tier.credential_limits),
    )
