"""Orchestration: the `slm` command and the Prefect flows over the library `slm`."""

from contextlib import suppress

from flows.environment import prepare
from slm.errors import UserError

with suppress(UserError):  # outside a project; the command that needs one says so
    prepare()  # here, because it must come before the first import of prefect
