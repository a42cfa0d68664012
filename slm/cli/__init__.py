"""The `slm` command: each module has some of its commands, `main` has the list."""

import sys
from importlib import import_module

from slm.errors import UserError

try:
    import_module("slm.storage")  # it refuses a system that it cannot run on, before others fail
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
