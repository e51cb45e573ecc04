"""What the example asks about each package, and what the package's own PyPI classifiers answer.

The small model answers best when the answer is how a sentence goes on; the wordings were chosen on such tables.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Truth = Callable[[Sequence[str]], str | None]

TOPICS = {
    "web": ("Topic :: Internet", "Topic :: System :: Networking", "Topic :: Communications", "Environment :: Web"),
    "science": ("Topic :: Scientific/Engineering", "Intended Audience :: Science/Research"),
    "text": ("Topic :: Text Processing", "Topic :: Documentation", "Topic :: Software Development :: Documentation"),
    "testing": ("Topic :: Software Development :: Testing", "Topic :: Software Development :: Quality Assurance"),
    "terminal": ("Topic :: System ::", "Topic :: Terminals", "Environment :: Console"),
}
ASYNC = ("Framework :: AsyncIO", "Framework :: Trio", "Framework :: AnyIO")
LICENSES = {
    "MIT": ("License :: OSI Approved :: MIT", "License :: MIT"),
    "Apache": ("License :: OSI Approved :: Apache", "License :: Apache"),
    "BSD": ("License :: OSI Approved :: BSD", "License :: BSD"),
}
SEARCHES = ("testing", "numbers and tables", "the web", "the terminal", "writing documentation")
PLACES = ("on the web", "on one machine")


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is the beginning of a sentence, each label one way to end it; `truth` names the right one."""

    name: str
    text: str
    labels: tuple[str, ...]
    truth: Truth


def _has(classifiers: Sequence[str], prefixes: tuple[str, ...]) -> bool:
    return any(classifier.startswith(prefixes) for classifier in classifiers)


def _either(prefixes: tuple[str, ...], yes: str, no: str) -> Truth:
    return lambda classifiers: yes if _has(classifiers, prefixes) else no


def _one_of(labels: Mapping[str, tuple[str, ...]]) -> Truth:
    """The label whose classifiers the package has; None for packages with several or none."""

    def truth(classifiers: Sequence[str]) -> str | None:
        found = [label for label, prefixes in labels.items() if _has(classifiers, prefixes)]
        return found[0] if len(found) == 1 else None

    return truth


_TOPIC_WORDS = {
    "the web": TOPICS["web"],
    "science": TOPICS["science"],
    "text": TOPICS["text"],
    "testing": TOPICS["testing"],
    "the terminal": TOPICS["terminal"],
}

QUESTIONS = (
    Question("topic", "In short, this is a library for", tuple(_TOPIC_WORDS), _one_of(_TOPIC_WORDS)),
    Question("keyword", "Keywords:", tuple(TOPICS), _one_of(TOPICS)),
    Question(
        "audience",
        "It is meant for",
        ("scientists", "programmers"),
        _either(TOPICS["science"], "scientists", "programmers"),
    ),
    Question("async", "Keywords:", ("asyncio", "python"), _either(ASYNC, "asyncio", "python")),
    Question("text", "It works with", ("text", "objects"), _either(TOPICS["text"], "text", "objects")),
    Question("testing", "Keywords:", ("testing", "library"), _either(TOPICS["testing"], "testing", "library")),
    Question("web", "It is used", PLACES, _either(TOPICS["web"], *PLACES)),
    Question("license", "License:", tuple(LICENSES), _one_of(LICENSES)),
)
