"""The kinds of things that a configuration is made of."""

from enum import StrEnum


class Kind(StrEnum):
    """What a row of the configuration is; also the word that messages use for it."""

    SERVICE = "service"
    ORGANIZATION = "organization"
    USER = "user"
    API_KEY = "api_key"
    PROVIDER = "provider"
    CREDENTIAL = "credential"
    ROUTER = "router"
    RULE = "rule"
    SUBJECT_LIMITS = "subject_limits"
    PRICE = "price"
    ADMINISTRATOR = "administrator"
    DEVICE = "device"
    TIER = "tier"
    NODE = "node"
