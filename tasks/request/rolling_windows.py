"""A text in windows of a model's context, as lm-evaluation-harness lays them for `loglikelihood_rolling`.

Its `get_rolling_token_windows` and `make_disjoint_window` say what they are; a test holds this to both.
"""

from dataclasses import dataclass

from engine.request import TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Tokens to score, and those before them that they are scored behind: at least one."""

    context: TokenIds
    scored: TokenIds


def rolling_windows(token_ids: TokenIds, window: int, context_len: int = 1) -> list[Window]:
    """Each token but the first, which is the prefix, is scored once, in one of the windows.

    A window has `window` tokens that are read, and looks up one more. All but the first have at least `context_len`
    tokens of context; the last one reaches back as far as its tokens leave room for.
    """
    assert 1 <= context_len <= window, (context_len, window)
    first = token_ids[: window + 1]
    windows = [Window(first[:1], first[1:])]
    done = len(first)
    while done < len(token_ids):
        end = min(done + window - context_len + 1, len(token_ids))
        windows.append(Window(token_ids[end - window - 1 : done], token_ids[done:end]))
        done = end
    return windows
