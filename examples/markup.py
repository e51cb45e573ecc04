"""Plain text from the Markdown and reStructuredText of package descriptions."""

import re

_DROPPED = (
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE),  # fenced code
    re.compile(r"^\.\. [^\n]*\n(?:[ \t]+\S[^\n]*\n|[ \t]*\n(?=[ \t]+\S))*", re.MULTILINE),  # rst directives
    re.compile(r"\[?!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])\]?(?:\([^)]*\)|\[[^\]]*\])?"),  # images, linked badges
    re.compile(r"^\[[^\]]+\]:.*$", re.MULTILINE),  # link targets
    re.compile(r"<[^<>]*>", re.DOTALL),  # HTML tags, bare links
    re.compile(r"^\s*[|:\-+=~^*#_\"'`]{3,}\s*$", re.MULTILINE),  # rules, underlines
    re.compile(r"\|[\w .\-]+\|_{0,2}"),  # rst substitutions
    re.compile(r"^\s*\|.*\|\s*$", re.MULTILINE),  # table rows
)
_KEPT = (
    (re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])"), r"\1"),  # Markdown links
    (re.compile(r":[a-z:]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`"), r"\1"),  # rst roles
    (re.compile(r"`([^`<]*?)\s*(?:<[^>]*>)?`_{0,2}"), r"\1"),  # code spans, rst links
    (re.compile(r"https?://\S+"), ""),
    (re.compile(r"^#+\s*", re.MULTILINE), ""),
    (re.compile(r"(\*\*|__|\*)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
)
_SPACE = re.compile(r"\s+")


def plain_text(source: str, limit: int) -> str:
    """The words of `source` on one line, cut at a word's end to at most `limit` characters."""
    text = source.replace("\r\n", "\n")
    for pattern in _DROPPED:
        text = pattern.sub("", text)
    for pattern, words in _KEPT:
        text = pattern.sub(words, text)
    return cut(_SPACE.sub(" ", text).strip(), limit)


def cut(text: str, limit: int) -> str:
    """`text` without the word that crosses `limit` characters."""
    if len(text) <= limit:
        return text
    return text[: limit + 1].rsplit(" ", 1)[0][:limit]
