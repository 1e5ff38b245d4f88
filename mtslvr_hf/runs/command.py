"""Commands that train: one line for a user's mistake instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..data import TooManyBadRowsError
from ..resumable import NonFiniteError

ERRORS = (ImportError, OSError, ValueError, NonFiniteError, TooManyBadRowsError)


def run_command(main: Callable[[Any], Any], argv: Any = None) -> None:
    """Calls the main function of a command; its errors end the program with a line and exit status 1.

    Other errors, which are not a user's mistake, keep their traceback.
    """
    try:
        main(argv)
    except ERRORS as error:
        lines = isinstance(error, TooManyBadRowsError)  # examples
        sys.exit(f"error: {error if lines else ' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Give the same command again to go on.\n")
        sys.exit(130)


__all__ = ["run_command"]
