"""Removes credentials from texts: everything written or shown passes through `without_credentials`.

URLs are parsed as people write them, not only as the standard defines them: a password may contain `@`, `/`,
`?`, `#` or a space. Where a text is ambiguous, too much is hidden rather than too little.
"""

import logging
import re
from typing import Any, Final
from urllib.parse import quote

HIDDEN: Final = "***"
_LONGEST_URL: Final = 2048
"""Characters. A longer URL is hidden as a whole, because the time to parse it grows with its square."""

_SCHEME: Final = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*:/{1,3}")
_TOKEN: Final = re.compile(r"[^\s\"'<>`]*")
_IPV4: Final = r"\d{1,3}(?:\.\d{1,3}){3}"
_CERTAIN_HOST: Final = re.compile(rf"(?:{_IPV4}|localhost|\[[^\]]*\]?|)(?::[\d*]*)?", re.IGNORECASE)
_HOST_AND_PORT: Final = re.compile(r"[^:\[]*(?::(?:[\d*]*|PORT):?|)[,.;)]*")
"""A name and at most one port, then punctuation of the sentence around it."""
_SCHEMELESS: Final = re.compile(
    r"(?:(?<=//)|(?<![\w/@:.%+-]))[\w.%+-]+:[^\s\"'/@]+@"
    rf"(?={_IPV4}(?!\w)|\[[0-9A-Fa-f:]+\]|localhost\b|(?:[\w-]+\.)+[A-Za-z]{{2,}}\b|[\w-]+(?::\d+)?/)"
)
_PARAMETER: Final = re.compile(
    r"(?P<name>[^\s\"'<>`=&;/?#,_][^\s\"'<>`=&;/?#,]*)=(?P<value>.*?)"
    r"(?=[&;,/?#][A-Za-z][\w.%\[\]-]*=|_[A-Za-z0-9]+=|[:.,;)]*(?:[\s\"'<>`]|$))"
)
_SECRET_FOLDER: Final = re.compile(
    r"(/(?:(?:access|api|stream|session|client|publish|play)?[_-]?"
    r"(?:token|key|auth(?:orization)?|secret|pass(?:word|wd|code|phrase)?|pwd|jwt|bearer|sig(?:nature)?|pin)"
    r"|cred(?:ential)?s?))/[^/?#\s\"'<>`]+",
    re.IGNORECASE,
)
_USER_FOLDER: Final = re.compile(
    r"(?<=/)[^/?#:=&\s\"'<>`]+:[^/?#\s\"'<>`]*[^/?#\s\"'<>`.,;:)](?=[/?#\s\"'<>`.,;:)]|$)"
)
"""User and password in the path, as in `http://host/user:password/live`."""
_RANDOM_FOLDER: Final = re.compile(
    r"/(?:(?=[\w-]*[a-z])(?=[\w-]*[A-Z])(?=[\w-]*\d)[A-Za-z0-9_-]{16,}"
    r"|(?=[\da-f-]*[a-f])(?=[\da-f-]*\d)(?:[\da-f]{24,}|[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}))"
    r"(?:\.[\w-]{16,})*(?=[/?#:\s\"'<>`.,;)]|$)"
)
"""Secret path of a stream, as some recorders generate them: `rtsps://host:7441/aB3dE5fG7hI9jK1l`."""
_BARE_QUERY: Final = re.compile(r"([?#])[^\s\"'<>`=]+(?=[\s\"'<>`]|$)")
_HARMLESS_VALUE: Final = re.compile(r"[\w.:-]{0,32}")
_HARMLESS: Final = re.compile(
    "action|camera|channel|codec|compression|fps|framerate|height|mode|profile|quality|rate|resolution"
    "|rotation|size|stream|streamtype|subtype|track|transport|type|video|width",
    re.IGNORECASE,
)
"""Parameters of camera URLs that are shown. Every other parameter may be a password."""


def without_credentials(text: str) -> str:
    """Return the text with user, password and unknown parameters of every URL hidden.

    A text without these is returned unchanged.
    """
    starts = list(_SCHEME.finditer(text))
    if not starts:
        return _SCHEMELESS.sub("", text)
    pieces = [_SCHEMELESS.sub("", text[: starts[0].start()])]
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        rest = text[start.end() : following.start() if following else len(text)]
        pieces += (start.group(), _hidden(rest) or _without_parameters(_without_user(rest)))
    return "".join(pieces)


def standard_url(url: str) -> str:
    """Return the URL in standard form: `/`, `?` and `#` in a password are percent-encoded."""
    scheme = _SCHEME.match(url)
    rest = url[scheme.end() :] if scheme else ""
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    at = rest.rfind("@")
    if scheme is None or "@" in head or at < 0 or _HOST_AND_PORT.fullmatch(head):
        return url
    user, _, password = rest[:at].partition(":")
    return f"{scheme.group()}{quote(user, safe='%')}:{quote(password, safe='%')}@{rest[at + 1 :]}"


def cleaned(value: Any) -> Any:
    """Return JSON-like data with `without_credentials` applied to every string that is not a key."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(cleaned, value))
    return value


_CONTROLS: Final = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends, changes of direction, and surrogates, which have no UTF-8 encoding."""


def harmless(line: str) -> str:
    """Return the text as one line, with U+FFFD for each character that a terminal would execute, not show."""
    return _CONTROLS.sub("\ufffd", line)


class CleanFormatter(logging.Formatter):
    """Formats log records without credentials and without control characters.

    This includes records of other libraries and tracebacks. A message is one line; only a traceback has more.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return without_credentials("\n".join(map(harmless, super().format(record).split("\n"))))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the message in one line."""
        return harmless(super().formatMessage(record))


def _hidden(rest: str) -> str:
    """Return `rest` with its URL hidden as a whole if that is too long to be parsed, else nothing."""
    token = _TOKEN.match(rest)
    assert token is not None
    too_long = token.end() > _LONGEST_URL
    return HIDDEN + rest[max(token.end(), rest.rfind("@") + 1) :] if too_long else ""


def _without_user(rest: str) -> str:
    """Return `rest` without user and password; `rest` follows `scheme://` and may end in other text."""
    token = _TOKEN.match(rest)
    assert token is not None
    head = re.split(r"[/?#]", token.group(), maxsplit=1)[0]
    if "@" in head:
        return rest[_last_at(token.group()) :]
    if not _HOST_AND_PORT.fullmatch(head) and not head.startswith("["):
        # this is no valid port, so it is part of a password
        end = rest.rfind("@") + 1
        return rest[end:] if end else HIDDEN + rest[len(head) :]
    if ":" in head and not _CERTAIN_HOST.fullmatch(head):
        return rest[_last_at(re.split(r"\s", rest, maxsplit=1)[0]) :]
    return rest


def _last_at(token: str) -> int:
    """Return the position after the last `@` of a URL that is not in a `name=value` parameter; 0 if none."""
    at = [found.end() for found in re.finditer("@", token) if "=" not in _query(token[: found.start()])]
    return at[-1] if at else 0


def _query(before: str) -> str:
    return re.split(r"[?#]", before, maxsplit=1)[-1] if re.search(r"[?#]", before) else ""


def _without_parameters(rest: str) -> str:
    def shown(found: re.Match[str]) -> str:
        shown = _HARMLESS.fullmatch(found["name"]) and _HARMLESS_VALUE.fullmatch(found["value"])
        return found.group() if shown else f"{found['name']}={HIDDEN}"

    token = _TOKEN.match(rest)
    assert token is not None
    url = _SECRET_FOLDER.sub(rf"\1/{HIDDEN}", _PARAMETER.sub(shown, token.group()))
    host, slash, path = url.partition("/")
    url = host + _RANDOM_FOLDER.sub(f"/{HIDDEN}", _USER_FOLDER.sub(HIDDEN, slash + path))
    return _BARE_QUERY.sub(rf"\1{HIDDEN}", url) + rest[token.end() :]
