"""A disk that does not take what is to be kept: said once, and once more when it is over."""

from typing import Final

import structlog

from dataplane.control.frame_file import error_code

_UNEXPECTED: Final = "UNEXPECTED"

_log: Final = structlog.get_logger(__name__)


class DiskOutage:
    """What the disk last said, about one sort of thing.

    `error` is a short code such as `ENOSPC`, empty while the disk does what it is asked to.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.error = ""

    def failed(self, error: Exception) -> None:
        """Note that something was not kept; must be called where the error is handled."""
        code = error_code(error) if isinstance(error, OSError) else _UNEXPECTED
        if code == _UNEXPECTED and self.error != code:
            _log.exception("not_kept_on_disk", what=self._what, error=code)
        elif not self.error:
            _log.error("not_kept_on_disk", what=self._what, error=code)
        self.error = code

    def over(self) -> None:
        """Note that everything is kept."""
        if self.error:
            _log.warning("kept_on_disk_again", what=self._what, error=self.error)
        self.error = ""
