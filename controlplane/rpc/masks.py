"""Update masks: which fields of a resource a request changes."""

from collections.abc import Collection

from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.domain.errors import InvalidError


def masked_fields(mask: FieldMask, changeable: Collection[str]) -> tuple[str, ...]:
    """Return the fields of the mask, each once.

    Raises:
        InvalidError: The mask is empty, or names a field that does not exist or cannot change; the detail names it.
    """
    if not mask.paths:
        raise InvalidError("name the fields to change", field="update_mask")
    for path in mask.paths:
        if path not in changeable:
            names = ", ".join(sorted(changeable))
            raise InvalidError(
                f"{path[:200]} is not a field that can change; these are: {names}",
                field="update_mask",
            )
    return tuple(dict.fromkeys(mask.paths))
