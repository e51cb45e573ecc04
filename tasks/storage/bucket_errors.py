"""What can go wrong with an output folder in a bucket, in words for people."""

import re

from engine.errors import TerminalError, TransientError

_CODE = re.compile(r"<Code>(\w+)</Code>", re.ASCII)
_STATUS = re.compile(r"status code: (\d{3}[^:\n|]*)", re.ASCII)

_KEYS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or this machine's role"
_CURES = {
    "NoSuchBucket": "create the bucket, or name another",
    "InvalidBucketName": "name a bucket that there can be",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": _KEYS,
    "ExpiredToken": _KEYS,
    "AccessDenied": f"{_KEYS}; it needs ListBucket, GetObject, PutObject and DeleteObject there",
    "PermanentRedirect": "the bucket is in another region; say which in AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; say which in AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region; say which in AWS_REGION",
    "NotImplemented": "the server knows no conditional writes (If-None-Match and If-Match of a PUT)",
}
# What a client says that got no answer from S3 itself.
_WITHOUT_CODE = {
    "incorrectly configured region": "PermanentRedirect",
    "403 Forbidden": "AccessDenied",
    "401 Unauthorized": "AccessDenied",
}
# Where machines in a cloud, and in its containers, ask for the keys of their role.
_ROLE_SERVERS = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254")


class LeaseLostError(TerminalError):
    """Another run has taken the output folder's lease in its bucket: this one may commit nothing more (exit code 1).

    Cure: none is needed: the other run goes on from what is committed. A machine that was suspended, or without network
    for longer than `TRUNKLINE_LEASE_SECONDS`, loses its lease.
    """


class BucketUnavailableError(TransientError, RuntimeError):
    """The bucket of the output folder has not answered for minutes.

    Cure: see to the network and the server that the line names; the same command continues.
    """


def lasting(problem: Exception, *, had_keys: bool = False) -> str | None:
    """What is wrong, and the cure, where another try would meet the same; None for what may pass.

    Who `had_keys` has a role, whose server is away for a moment.
    """
    said = str(problem)
    code = _CODE.search(said)
    name = code[1] if code is not None else None
    if not had_keys and _is_of_role(said):
        return "no credentials are found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role is"
    if name is None:
        name = next((known for words, known in _WITHOUT_CODE.items() if words in said), None)
    return None if name not in _CURES else f"refused ({name}): {_CURES[name]}"


def passing(problem: Exception) -> str:
    """What is wrong that may pass, in a few words: never a request's headers."""
    said = str(problem)
    if _is_of_role(said):
        return "was not asked: the server that gives keys to this machine's role does not answer"
    code, status = _CODE.search(said), _STATUS.search(said)
    if code is not None:
        return f"answers {code[1]}"
    return f"answers {status[1].strip()}" if status is not None else "does not answer"


def _is_of_role(said: str) -> bool:
    return any(server in said for server in _ROLE_SERVERS)
