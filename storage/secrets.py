"""What must never be written down: credentials in text, found by their form and by their value.

`redact` goes over everything that leaves the process for a terminal, a log, Prefect, MLflow or the ledger.
`refuse_credentials` keeps them out of parameters, which Prefect stores as they are.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from storage.errors import InputError

HIDDEN = "***"
SHORTEST = 6  # characters of a secret that is looked for by its value
SHORTEST_ID = 16  # and of a key's id, which is no secret itself and in small set-ups an ordinary word
# Controls, line and paragraph separators, halves of characters, and what turns the direction of text.
ACTED_ON = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
DEPTH = 20  # causes of an exception that are followed

SECRET = re.compile(r"(?:^|_)(?:SECRETS?|PASSWORD|PASSWD|TOKEN|API_?KEY|SECRET_ACCESS_KEY|AUTH_STRING)(?:_|$)", re.I)
KEY_ID = re.compile(r"(?:^|_)(?:ACCESS_KEY_ID|ACCESS_KEY|S3_KEY)$", re.I)
WHERE = re.compile(r"_(?:FILE|PATH|DIR|URL|URI|ENDPOINT|NAME)$", re.I)  # tells where a secret is, and is none

_QUERY = (
    r"X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|sas|access_token|id_token|auth_token"
    r"|refresh_token|token|api_?key|password|passwd|secret|client_secret"
)
_NAMES = (
    r"(?:aws_)?secret_?access_?key|(?:aws_)?access_?key_?id|(?:aws_)?session_?token|X-Amz-Security-Token|secret_?key"
    r"|access_?key|client_?secret|api_?key|password|passwd|secret|(?:access|auth|refresh)_?token|token"
)
_SIGNED = re.compile(rf"\?(?:[^\s#]*&)?(?:{_QUERY})=", re.I)
_FORMS = [
    # user:password@ before a host. A password may hold anything but a slash and blanks.
    (re.compile(r"(://)[^\s/:@'\"<>]*:[^\s/\"<>]*@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(://)(?:AKIA|ASIA)[A-Z0-9]+:[^\s\"<>]+@"), rf"\1{HIDDEN}@"),  # one of AWS may hold slashes
    (re.compile(r"(https?://)[^\s/:@'\"<>]+@", re.I), rf"\1{HIDDEN}@"),
    (re.compile(r"(%3A%2F%2F)(?:(?!%2F|%40)[^\s&])*%3A(?:(?!%2F)[^\s&])*?%40", re.I), rf"\1{HIDDEN}%40"),
    (re.compile(rf"([?&;]|%3F|%26)({_QUERY})(=|%3D)(?:(?!%26)[^\s&;#'\"<>])+", re.I), rf"\1\2\3{HIDDEN}"),
    # Headers, also as Python and JSON write them.
    (re.compile(r"(authorization['\"]?\s*[:=]\s*b?['\"]?)(?![\s*])[^\r\n'\"]+", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(Signature|Credential)=[A-Za-z0-9%/+=_-]{16,}"), rf"\1={HIDDEN}"),
    # Assignments: name=value, "name": "value", name='value', <name>value</name>.
    (re.compile(rf"\b({_NAMES})(\s*=\s*)(['\"]?)[^\s'\"&;,<>)\]}}]+", re.I), rf"\1\2\3{HIDDEN}"),
    (re.compile(rf"(['\"](?:{_NAMES})['\"]\s*:\s*b?)(['\"])(?:(?!\2).)+\2", re.I), rf"\1\2{HIDDEN}\2"),
    (re.compile(rf"(<({_NAMES}|AWSAccessKeyId)>)[^<]+(</\2>)", re.I), rf"\1{HIDDEN}\3"),
    (re.compile(r"\b((?:aws_)?(?:secret_access_key|session_token)\s*:\s*)[^\s'\",;]+", re.I), rf"\1{HIDDEN}"),
    # An access key's id. Digests are lower case, so none looks like one.
    (re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"), HIDDEN),
]


def named(environment: Mapping[str, str]) -> dict[str, str]:
    """The secret values in an environment, each with the name of its variable."""
    found = {}
    for name, value in environment.items():
        least = SHORTEST if SECRET.search(name) else SHORTEST_ID if KEY_ID.search(name) else None
        if least is not None and len(value) >= least and not WHERE.search(name):
            found[value] = name
            # `user:password`, as Prefect's server wants it: the password alone is as secret.
            tail = value.partition(":")[2] if name.upper().endswith("AUTH_STRING") else ""
            if len(tail) >= SHORTEST:
                found[tail] = name
    return found


def _spellings(value: str) -> set[str]:
    """A value as it may stand in text: plain, percent-encoded, in JSON, in Python."""
    encoded = {quote(value), quote(value, safe=""), quote_plus(value)}
    lower = {re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), text) for text in encoded}
    return {value, json.dumps(value)[1:-1], repr(value)[1:-1]} | encoded | lower


def redact(text: str) -> str:
    """The text with every credential in it replaced by ``***``; other text is returned as it is."""
    spellings = {spelling for value in named(os.environ) for spelling in _spellings(value)}
    for spelling in sorted(spellings, key=len, reverse=True):  # a secret may be a part of another
        if spelling in text:
            text = text.replace(spelling, HIDDEN)
    return _without_forms(text)


def _without_forms(text: str) -> str:
    for form, instead in _FORMS:
        text = form.sub(instead, text)
    return text


def redact_error(error: BaseException) -> None:
    """Redacts, in place, the texts of an exception and of those that led to it; their types stay."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting and len(seen) < DEPTH:
        one = waiting.pop()
        if one is None or any(one is other for other in seen):
            continue
        seen.append(one)
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
        one.args = tuple(_redact_any(value) for value in one.args)
        for name, value in list(vars(one).items()):  # Prefect's and botocore's keep the text a second time
            if isinstance(value, str | dict | list | tuple):
                setattr(one, name, _redact_any(value))
        if isinstance(one, OSError):
            for name in ("strerror", "filename", "filename2"):
                if isinstance(getattr(one, name), str):
                    setattr(one, name, redact(getattr(one, name)))


def _redact_any(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if type(value) in (list, tuple):
        return type(value)(_redact_any(item) for item in value)  # type: ignore[call-arg, attr-defined]
    if type(value) is dict:
        return {key: _redact_any(item) for key, item in value.items()}  # type: ignore[attr-defined]
    return value


def _may_be_signed(text: str) -> bool:
    """Whether text is, or has in it, a URL or a relative path with a signed query."""
    return "://" in text or _SIGNED.search(text) is not None


def without_credentials(value: Any) -> Any:
    """A JSON value from outside, with the credentials taken out of the URLs in it, such as those of signed ones."""
    if isinstance(value, str):
        return _without_forms(value) if _may_be_signed(value) else value
    if isinstance(value, list | tuple):
        return [without_credentials(item) for item in value]
    if isinstance(value, dict):
        return {without_credentials(name): without_credentials(item) for name, item in value.items()}
    return value


def printable(text: str) -> str:
    """Text from outside, such as a file's name, on one line and without what a terminal would act on."""
    return ACTED_ON.sub("\N{REPLACEMENT CHARACTER}", text)


def shown(text: str) -> str:
    """Text for people: without credentials, and each of its lines printable."""
    return "\n".join(map(printable, redact(text).split("\n")))


def refuse_credentials(url: str, option: str = "") -> None:
    """InputError for a URL that carries credentials: as a parameter it would be stored and shown as it is."""
    where = f"{option} " if option else ""
    if _may_be_signed(url) and (without := _without_forms(url)) != url:
        raise InputError(
            f"{where}{redact(without)}: credentials in a URL would be stored with the run; take them out and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or FSSPEC_S3_KEY and FSSPEC_S3_SECRET) instead"
        )
    for value, name in named(os.environ).items():
        if any(spelling in url for spelling in _spellings(value)):
            raise InputError(
                f"{where}{redact(url)}: holds the value of the environment variable {name}, which is kept out of every "
                "record; choose another name, or a longer secret"
            )
