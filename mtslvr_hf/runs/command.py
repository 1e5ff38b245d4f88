"""Commands that train: one line for a user's mistake instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..data import TooManyBadRowsError
from ..resumable import NonFiniteError
from .lock import end_with_launcher

ERRORS = (ImportError, OSError, ValueError, NonFiniteError, TooManyBadRowsError)

CONNECTIONS = ("gloo/transport", "NCCL", "Connection closed by peer")  # in the errors of torch.distributed
LOST_PROCESS = (
    "Another process of this run has ended, or cannot be reached; see its own messages. The last complete checkpoint "
    "is kept: give the same command again, on every machine, to go on."
)


def run_command(main: Callable[[Any], Any], argv: Any = None) -> None:
    """Calls the main function of a command; its errors end the program with a line and exit status 1.

    So does the loss of another process of the run. Other errors, which are not a user's mistake, keep their traceback.
    """
    end_with_launcher()  # before the processes wait for each other
    try:
        main(argv)
    except ERRORS as error:
        lines = isinstance(error, TooManyBadRowsError)  # examples
        sys.exit(f"error: {error if lines else ' '.join(str(error).split())}")
    except RuntimeError as error:
        if not any(word in str(error) for word in CONNECTIONS):
            raise
        sys.exit(f"error: {LOST_PROCESS} ({' '.join(str(error).split())[:200]})")
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Give the same command again to go on.\n")
        sys.exit(130)


__all__ = ["run_command"]
