"""A row that cannot be scored: it ends in the results' `errors`, and the others go on."""

from dataclasses import dataclass

EMPTY_PROMPT = "EMPTY_PROMPT"
CONTEXT_OVERFLOW = "CONTEXT_OVERFLOW"
BAD_ENCODING = "BAD_ENCODING"
BAD_MESSAGES = "BAD_MESSAGES"
BAD_LABELS = "BAD_LABELS"
BAD_ITEMS = "BAD_ITEMS"
BAD_CONTINUATION = "BAD_CONTINUATION"
BAD_TASK = "BAD_TASK"
BAD_SAMPLING = "BAD_SAMPLING"
BAD_VALUE = "BAD_VALUE"
TEMPLATE_ERROR = "TEMPLATE_ERROR"
UNKNOWN_TOKEN = "UNKNOWN_TOKEN"
ENGINE_CRASH = "ENGINE_CRASH"

_MESSAGE_LENGTH = 200


@dataclass(frozen=True, slots=True)
class RowError:
    type: str
    message: str


def described(error_type: str, what: str, problem: Exception) -> RowError:
    said = " ".join(str(problem).split())[:_MESSAGE_LENGTH].encode("utf-8", "replace").decode()
    return RowError(error_type, f"{what}: {said}" if said else what)
