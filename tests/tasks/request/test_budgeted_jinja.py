"""A template that does too much is its row's error, in little time and memory; one that does not is what it was."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import UserError
from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from tasks.request.budgeted_jinja import BudgetedEnvironment, BudgetError, budget
from tasks.request.chat import ChatRenderer
from tasks.request.messages import Chat
from tasks.request.prompt_text import PromptText
from tasks.request.template import PromptTemplate
from tasks.source.row_error import TEMPLATE_ERROR, RowError
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import run_steps, table

TO_60 = "{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x | length }}{{ ns.x == ns.x }}{{ ns.x }}"
# As prompts' templates may hold them, and chat templates too.
BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaa{% endfor %}{% endfor %}",
    "a loop that is kept": "{% set x %}{% for i in range(99999) %}{{ big }}{% endfor %}{% endset %}",
    "a loop over all": "{% for i in big %}{{ big | sum }}{% endfor %}",
    "a loop that looks": "{% for i in big %}{% if -1 in big %}{% endif %}{% endfor %}",
    "a loop that copies": "{% for i in big %}{% set x = big[0:] %}{% endfor %}",
    "a loop that compares": "{% for i in big %}{{ big == big[1:] }}{% endfor %}",
    "a width": "{{ '' | center(1000000000) }}",
    "a width that is computed": "{{ '' | center(10 ** 9) }}",
    "a width inside": "{{ [''] | map('center', 10 ** 9) | list }}",
    "an indentation": "{{ 'a\nb' | indent(10 ** 9) }}",
    "lines of JSON": "{{ [1, 2] | tojson(indent=10 ** 9) }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a format's star": "{{ '%*d' % (10 ** 9, 1) }}",
    "a format by filter": "{{ '%1000000000d' | format(1) }}",
    "a text times": "{{ 'a' * 10 ** 9 }}",
    "a list times": "{{ ([0] * 10 ** 9) | length }}",
    "a power": "{{ 9 ** 999999999 }}",
    "a text that doubles": "{% set ns = namespace(x='a') %}" + TO_60.replace("STEP", "ns.x ~ ns.x"),
    "a sum that doubles": "{% set ns = namespace(x='a') %}" + TO_60.replace("STEP", "ns.x + ns.x"),
    "a list of itself": "{% set ns = namespace(x=[1]) %}" + TO_60.replace("STEP", "[ns.x, ns.x]"),
    "a number that squares": "{% set ns = namespace(x=3) %}" + TO_60.replace("STEP", "ns.x * ns.x"),
    "replaced": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "filled up": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "joined by a filter": "{{ big | map('string') | join('b' * 1000000) }}",
    "rounded": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "tags": "{{ ('<!--x-->' * 1000000) | striptags }}",
}
CHAT_BOMBS = BOMBS | {
    "a method": "{{ 'a'.ljust(10 ** 9) }}",
    "replaced by a method": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "a form": "{{ '{:>1000000000}'.format(1) }}",
    "a form in a form": "{{ '{:>{w}}'.format(1, w=10 ** 9) }}",
    "bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "joined": "{{ ('b' * 1000000).join(big | map('string')) }}",
}
DEEP = {
    "a macro": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
}
SECONDS, MEGABYTES = 20.0, 600


@pytest.fixture(autouse=True)
def bounded() -> Any:
    """Far more than any test here takes, and far less than a bomb that goes off."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


@pytest.mark.fault(15)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_template_that_does_too_much(bomb: str) -> None:
    with pytest.raises(BudgetError, match="it does too much: more than 1,000,000 iterations"):
        PromptTemplate("{{ big | length }}" + bomb).render({"big": list(range(50_000))})


@pytest.mark.parametrize("bomb", DEEP.values(), ids=DEEP)
def test_a_template_that_goes_too_deep(bomb: str) -> None:
    with pytest.raises((RecursionError, TemplateError)):
        PromptTemplate("{{ x }}" + bomb).render({"x": "a"})


def test_such_a_row_is_a_template_error_and_the_others_go_on(job_of: JobMaker) -> None:
    template = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}{{ text }}"
    rows = [{"text": "a", "n": 3}, {"text": "b", "n": 99_999}, {"text": "c", "n": 10**9}, {"text": "d", "n": 300}]
    job = job_of(rows, prompt={"template": template})
    run_steps(job)
    assert [row["error_type"] for row in table(job)] == [None, TEMPLATE_ERROR, TEMPLATE_ERROR, None]
    assert "it does too much: more than 1,000,000 iterations" in table(job)[1]["error_message"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ x }}" + "{% for i in x %}" * 40 + "{% endfor %}" * 40, "is nested too deeply"),
        ("{{ " + "(" * 2000 + "x" + ")" * 2000 + " }}", "is nested too deeply"),
        ("{{ x + " + "9" * 5000 + " }}", "holds a number that is too long"),
    ],
)
def test_a_template_that_python_does_not_take_is_one_line(template: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"^prompt\.template: {said}"):
        PromptTemplate(template)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve_model("embedded"))


@pytest.mark.fault(24)
@pytest.mark.parametrize("bomb", CHAT_BOMBS.values(), ids=CHAT_BOMBS)
def test_a_models_chat_template_that_does_too_much(tokenizer: Any, bomb: str) -> None:
    renderer = ChatRenderer("{% set big = range(50000) | list %}" + bomb, tokenizer)
    said = renderer.render(Chat([{"role": "user", "content": "x"}]))
    assert isinstance(said, RowError)
    assert said.type == TEMPLATE_ERROR
    assert said.message.startswith("the model's chat template fails on this row: it does too much")


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment.__class__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ ('{0.__cl' ~ 'ass__}') | format(messages) | attr('__class__') }}",
    "{% set x = messages.append(1) %}{{ messages | length }}",
    "{{ lipsum.__globals__.os.popen('touch CANARY').read() }}",
    "{% include 'CANARY' %}",
    "{% import 'os' as os %}{{ os.system('touch CANARY') }}",
]


@pytest.mark.fault(24)
@pytest.mark.parametrize("escape", ESCAPES)
def test_no_chat_template_leaves_the_sandbox(tokenizer: Any, tmp_path: Path, escape: str) -> None:
    canary = tmp_path / "canary"
    rendered = ChatRenderer(escape.replace("CANARY", str(canary)), tokenizer).render(
        Chat([{"role": "user", "content": "x"}])
    )
    text = rendered.text if isinstance(rendered, PromptText) else str(rendered)
    assert "<class" not in text
    assert "builtins" not in text
    assert not canary.exists()


SAME = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ m.role }}{{ m['content'] }}{% endfor %}",
    "{{ messages[0].content.split(' ') | join('-') | upper }}{{ messages[1:] | length }}",
    "{{ '%05d|%-4s' % (3, 'x') }}{{ '{:>5}'.format('a') }}{{ 2 ** 10 }}{{ 'ab' * 3 }}{{ 1 + 2 }}{{ 'a' ~ 1 ~ none }}",
    "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(messages[0].role) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ messages | tojson(indent=2) }}{{ 'a' in 'abc' }}{{ 3 in [1, 2] }}{{ 1 < 2 < 3 }}{{ missing is defined }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}{{ [3, 1] | sort }}",
    "{% for i in range(4) if i % 2 %}{{ i }}{{ loop.revindex }}{% endfor %}{{ 'ab' | indent(2, true) }}",
]


@pytest.mark.parametrize("template", SAME)
def test_what_is_within_the_budget_is_as_it_was(template: str) -> None:
    given = {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]}
    expected = ImmutableSandboxedEnvironment().from_string(template).render(given)
    with budget():
        assert BudgetedEnvironment().from_string(template).render(given) == expected
    assert BudgetedEnvironment().from_string(template).render(given) == expected
