"""HTTP without TLS, as clients speak it to a stack on their own machine."""

import ssl
from typing import Final

NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For `verify` of a client that is made for one call: to load certificates takes longer than the call."""
