"""RFC 3161 time stamps of log heads: a request, what a response says, and who vouches for it.

A stamp binds only if its authority's certificate leads to a root that others trust: the public
roots (certifi's), or such as a judge names. An authority that the owner made himself binds nothing.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.verdict_results import Stamp
from stillhouse.guard.chain import Head, SealedHead

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse

MOST = 1 << 20  # bytes of a response
TIMEOUT_S = 30.0


def request(head: Head) -> bytes:
    """A time-stamp request of a head's hash (DER), which asks for the authority's certificate."""
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    builder = TimestampRequestBuilder().data(head.body).hash_algorithm(HashAlgorithm.SHA256)
    return builder.nonce(nonce=True).cert_request(cert_request=True).build().as_bytes()


def asked_of(url: str, head: Head) -> bytes:
    """An authority's response at an address, which is the only one that is contacted. Raises
    RunError."""
    import httpx

    headers = {"Content-Type": "application/timestamp-query"}
    try:
        found = httpx.post(url, content=request(head), headers=headers, timeout=TIMEOUT_S)
        found.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RunError(f"{url} gives no time stamp: {error}".splitlines()[0]) from None
    return found.content


def stamp_of(response: bytes, heads: Sequence[SealedHead], *, roots: Sequence[Path] = ()) -> Stamp:
    """What a response says of which head. roots: PEM files that are trusted beside the public
    roots. Where none of both leads to its signature (`public` is False) the authority is a mere
    claim. Raises UsageError for what is no stamp of any of these heads."""
    try:
        return _stamp(response, heads, roots)
    except (ValueError, TypeError, LookupError, OverflowError):  # parsed as it is looked at
        raise UsageError("this is no time-stamp response (RFC 3161, DER)") from None


def _stamp(response: bytes, heads: Sequence[SealedHead], roots: Sequence[Path]) -> Stamp:
    read = _read(response)
    imprint = read.tst_info.message_imprint.message
    for each in heads:
        if hashlib.sha256(each.head.body).digest() == imprint:
            break
    else:
        raise UsageError("the time stamp is of none of these log heads")
    authority = _authority(read)
    named = [[root] for path in roots for root in read_roots(path)]  # names need not differ
    return Stamp(
        head=each.head.number, time=read.tst_info.gen_time.timestamp(),
        authority=authority.subject.rfc4514_string(),
        certificate=authority.fingerprint(SHA256()).hex(),
        public=any(_vouches(read, each.head, few) for few in (public_roots(), *named)),
    )  # fmt: skip


def read_stamps(heads: Sequence[SealedHead], *, roots: Sequence[Path] = ()) -> list[Stamp]:
    """What the stamps of a chain say, in order. Raises UsageError for one that is none of its
    head."""
    return [
        stamp_of(bytes.fromhex(held), [each], roots=roots) for each in heads for held in each.stamps
    ]


@cache
def public_roots() -> tuple[x509.Certificate, ...]:
    with warnings.catch_warnings():  # of an old root's serial number
        warnings.simplefilter("ignore")
        return tuple(read_roots(Path(certifi.where())))


def read_roots(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file. Raises UsageError."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"{path} has no certificates: give a PEM file") from None


def _read(response: bytes) -> TimeStampResponse:
    from rfc3161_client import decode_timestamp_response

    found = decode_timestamp_response(_in_order(response[:MOST]))
    if found.status not in (0, 1):
        why = "; ".join(found.status_string) or f"status {found.status}"
        raise UsageError(f"the authority gave no time stamp: {why}")
    return found


CERTIFICATES = 0xA0  # DER's tag of them in signed data
TO_SIGNED_DATA = (0, 1, 1, 0)  # response, its token, that one's content, the signed data


def _in_order(response: bytes) -> bytes:
    """The same response with its certificates in DER's order, which is not signed, and which many
    authorities don't keep. Raises ValueError for what is no DER."""
    inside, after = 0, len(response)
    for place in TO_SIGNED_DATA:
        parts = _parts(response, inside, after)
        if place >= len(parts):  # a refusal has no token
            return response
        _, _, inside, after = parts[place]
    for tag, _, first, last in _parts(response, inside, after):
        if tag == CERTIFICATES:
            each = [response[start:end] for _, start, _, end in _parts(response, first, last)]
            return response[:first] + b"".join(sorted(each)) + response[last:]
    return response


def _parts(data: bytes, at: int, end: int) -> list[tuple[int, int, int, int]]:
    """The DER values in a stretch of bytes: tag, start, start of the content, end."""
    found = []
    while at < end:
        size = data[at + 1] if at + 1 < end else 0x80
        inside = at + 2
        if size >= 0x80:  # the length has bytes of its own
            inside += size - 0x80
            size = int.from_bytes(data[at + 2 : inside], "big") if size > 0x80 else end
        if inside + size > end:
            raise ValueError("a value is longer than what holds it")
        found.append((data[at], at, inside, inside + size))
        at = inside + size
    return found


def _authority(read: TimeStampResponse) -> x509.Certificate:
    """The certificate that the stamp says it is signed with."""
    signers = list(read.signed_data.signer_infos)
    held = [x509.load_der_x509_certificate(each) for each in read.signed_data.certificates]
    for each in held:
        if len(signers) == 1 and (each.issuer, each.serial_number) == (
            signers[0].issuer, signers[0].serial_number,
        ):  # fmt: skip
            return each
    raise UsageError("the time stamp has no certificate of its authority: ask for it (certReq)")


def _vouches(
    read: TimeStampResponse, head: Head, roots: Sequence[x509.Certificate]
) -> bool:  # fmt: skip
    """Whether one of these certificates leads to the stamp's signature."""
    from rfc3161_client import VerificationError, VerifierBuilder

    verifier = VerifierBuilder(roots=list(roots)).build()
    try:
        return verifier.verify_message(read, head.body)
    except (VerificationError, ValueError):
        return False
