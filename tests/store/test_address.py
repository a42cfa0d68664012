"""Addresses of stores: what is one, and that none holds a credential."""

import sys

import pytest

from slm.errors import UserError
from slm.store.address import parse_address, redacted
from slm.store.remote import open_store


@pytest.mark.parametrize(
    "text", ["file:///mnt/slm", "s3://bucket/a/b", "memory://x", "gs://bucket"]
)
def test_an_address_is_what_it_was(text: str) -> None:
    assert str(parse_address(text)) == text
    assert str(parse_address(f"{text}/")) == text


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("/mnt/slm", "file:///mnt/slm"),
        ("", "s3://BUCKET/PREFIX"),
        ("file://slm", "absolute path, file:///"),
        ("s3://", "names no place"),
        ("file:///mnt/../etc", "no part of an address"),
        ("simplecache::s3://bucket", "not the address"),
        ("s3://a::s3://b", "no part of an address"),
    ],
)
def test_what_is_no_address_is_refused_with_the_remedy(text: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAKEY:hunter2@bucket/x", "sftp://me:hunter2@host/x", "s3://bucket/x?token=hunter2",
        "abfs://c@account/x?sig=hunter2", "AKIA:hunter2@bucket", "s3://bucket/x#hunter2",
        "s3://AKIA:hun/ter2@bucket/x",
    ],
)  # fmt: skip
def test_credentials_in_an_address_are_refused_and_not_printed(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_address(text)
    assert "hunter2" not in str(refused.value)
    assert "ter2" not in str(refused.value)


def test_a_message_of_a_library_shows_no_credentials() -> None:
    shown = redacted("cannot get https://AKIA:hunter2@host/x?X-Amz-Signature=abc")
    assert shown == "cannot get https://***@host/x?***"


def test_a_missing_package_is_one_message_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slm.extras.find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"s3://bucket needs s3fs.*slm-pipeline\[s3\]"):
        open_store("s3://bucket").keys("run")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://bucket cannot be opened: .*install gcsfs"):
        open_store("gs://bucket").keys("run")


def test_an_unknown_file_system_is_one_message() -> None:
    with pytest.raises(UserError, match="no file system 'carrier-pigeon'"):
        open_store("carrier-pigeon://coop").keys("run")
