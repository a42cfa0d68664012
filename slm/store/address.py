"""The address of a store, and the file system that it names.

Any that fsspec knows: `file:///mnt/slm`, `s3://BUCKET/PREFIX`, `gs://…`, `memory://…`. Credentials
come from where the file system's own library looks for them, such as AWS_ACCESS_KEY_ID and
AWS_ENDPOINT_URL. One in the address is refused, so that none is stored or printed.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slm.errors import UserError, excerpt

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_FORM = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
EXAMPLES = "file:///mnt/slm, s3://BUCKET/PREFIX"


@dataclass(frozen=True)
class Address:
    """A checked address of a store. There are no credentials in it."""

    scheme: str
    rest: str  # bucket and prefix; of a file, its absolute path

    def __str__(self) -> str:
        return f"{self.scheme}://{self.rest}"

    @property
    def folder(self) -> Path | None:
        """The folder of a store of files; None for any other."""
        return Path(self.rest) if self.scheme == "file" else None

    def filesystem(self) -> "AbstractFileSystem":
        """The file system, which asks others' changes at every call.

        Raises UserError where its package is not installed, or there is no such one.
        """
        from slm.source.remote import filesystem  # it loads pyarrow

        return filesystem(self.scheme, f"the store {self}", EXAMPLES)


def parse_address(text: str) -> Address:
    """The address that a text is. Raises UserError where it is none, or has credentials in it."""
    form = _FORM.fullmatch(text.strip())
    if form is None:
        raise UserError(
            f"{excerpt(repr(redacted(text)))} is not the address of a store, such as {EXAMPLES}"
            + ("" if set(text) & set(":@?#") else f"; a folder is file://{Path(text).absolute()}")
        )
    scheme, rest = form[1], form[2].rstrip("/")
    if any(sign in rest for sign in "@?#"):  # a secret key may have a '/' in it
        raise UserError(
            f"the store {redacted(text)}: an address may hold no credentials before '@', and no "
            "options after '?' or '#'; they come from the environment, such as AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    if "::" in rest or "\\" in rest or ".." in rest.split("/"):
        raise UserError(f"the store {text}: '::', '\\' and '..' are no part of an address")
    if scheme == "file" and not rest.startswith("/"):
        raise UserError(f"the store {text}: give an absolute path, file://{Path(rest).absolute()}")
    if not rest:
        raise UserError(f"the store {text} names no place: such as {EXAMPLES}")
    return Address(scheme, rest)


def redacted(text: str) -> str:
    """A text without what may be credentials in an address: before '@' and after '?' or '#'."""
    text = re.sub(r"((?:\w+://)?)\S*@", r"\1***@", text)
    return re.sub(r"[?#]\S+", "?***", text)
