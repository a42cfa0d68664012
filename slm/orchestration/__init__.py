"""Orchestration: the Prefect flows, and the stack that serves them."""

from contextlib import suppress

from slm.errors import UserError
from slm.machine import prepare

with suppress(UserError):  # outside a project; the command that needs one reports it
    prepare()  # here, because it must come before the first import of prefect
