"""What a template prints is made of the row's cells and nothing else."""

import builtins
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_NAMESPACE, DEFAULT_TESTS
from jinja2.exceptions import TemplateError

from engine.errors import UserError
from tasks.request.template import PromptTemplate
from tasks.source.cells import CellError, text_of

FAILURES = (TemplateError, CellError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
# Names that mean something to Jinja or to Python, whatever a row calls its columns and fields.
MEANINGFUL = {
    *(*dir(dict), *dir(str), *dir(list), *dir(int), *dir(builtins)),
    *(*DEFAULT_FILTERS, *DEFAULT_TESTS, *DEFAULT_NAMESPACE),
    *("self", "loop", "super", "caller", "varargs", "kwargs", "context", "environment", "blocks", "l_0_x", "t_1"),
    *("block", "name", "for", "set", "macro", "missing", "resolve", "undefined", "concat", "row", "self_", "ª", "名前"),
}
WORDS = sorted(filter(str.isidentifier, MEANINGFUL))
NAMES = st.sampled_from(WORDS) | st.from_regex(r"[^\W\d]\w{0,5}", fullmatch=True).filter(str.isidentifier)
VALUES = st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False) | st.lists(st.integers(), max_size=3)


def fill(template: str, **cells: Any) -> str:
    prompt = PromptTemplate(template)
    return prompt.render({name: cells[name] for name in prompt.columns(list(cells))})


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), st.data())
def test_a_name_is_the_rows_cell(cells: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(cells)))
    try:
        prompt = PromptTemplate(f"<{{{{ {name} }}}}>")
        columns = prompt.columns(list(cells))
    except UserError:
        # Jinja's grammar has these for itself, which is told before any work.
        assert name in {"True", "False", "None", "true", "false", "none", "not", "and", "or", "in", "is", "if", "else"}
        return
    assert columns == (name,)
    assert prompt.render({name: cells[name]}) == f"<{text_of(cells[name])}>"


@given(st.dictionaries(NAMES, VALUES, max_size=4), NAMES)
def test_an_attribute_is_the_cells_field_and_never_its_method(fields: dict[str, Any], name: str) -> None:
    cell = {"x": {"fields": fields, "text": "t", "number": 5, "list": [fields]}}
    for path in ("x.fields.NAME", "x.fields['NAME']", "x.fields | attr('NAME')", "x['list'][0].NAME"):
        template = f"<{{{{ {path.replace('NAME', name)} }}}}>"
        if name in fields:
            assert fill(template, **cell) == f"<{text_of(fields[name])}>"
        else:
            with pytest.raises(FAILURES):
                fill(template, **cell)
    for path in ("x.text.NAME", "x.number.NAME", "x.text['NAME']", "x.list.NAME", "x.text | attr('NAME')"):
        with pytest.raises(FAILURES):
            fill(f"{{{{ {path.replace('NAME', name)} }}}}", **cell)


@pytest.mark.parametrize("name", sorted({"range", "dict", "namespace", "lipsum", "cycler", "joiner"}))
def test_a_function_of_jinjas_is_no_value(name: str) -> None:
    assert fill(f"{{{{ {name} }}}}", **{name: "cell"}) == "cell"
    assert PromptTemplate(f"{{{{ {name} }}}}{{{{ x }}}}").columns(["x"]) == tuple(sorted([name, "x"]))


def test_a_function_is_called_unless_a_column_has_its_name() -> None:
    assert fill("{% for i in range(2) %}{{ i }}{{ x }}{% endfor %}", x="a") == "0a1a"
    assert fill("{% set ns = namespace(n=x) %}{{ ns.n }}", x=3) == "3"
    with pytest.raises(TypeError):
        fill("{{ range(2) }}{{ x }}", x="a", range="1-2")


@pytest.mark.parametrize(
    "name", ["my text", "a-b", "1st", "", "true", "self", "column", "column_", "it's", "a\nb", "ok"]
)
def test_any_column_has_a_spelling(name: str) -> None:
    spelled = f"column({name!r})"
    template = f"{{{{ {spelled} }}}}{{{{ [{spelled}, other, column('other')] | join('-') | upper }}}}"
    assert fill(template, **{name: "cell", "other": "x", "column_0": "y"}) == "cellCELL-X-X"


def test_a_column_of_the_templates_own_is_not_the_rows() -> None:
    assert fill("{% macro column(a) %}<{{ a }}>{% endmacro %}{{ column('x') }}{{ x }}", x="y") == "<x>y"
    assert fill("{{ column }}{{ column('my column') }}", **{"column": "a", "my column": "b"}) == "ab"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for t in tags %}{{ t }}{{ column('t') }}{% endfor %}", "xTyT"),
        ("{% for t in tags %}{{ column('loop') }}{{ loop.index }}{% endfor %}", "L1L2"),
        ("{% set t = 'mine' %}{{ t }}{{ column('t') }}", "mineT"),
        ("{% macro m(t) %}{{ t }}{{ column('t') }}{% endmacro %}{{ m(1) }}", "1T"),
        ("{{ column('a b') }}{{ column('column_') }}{{ column('0column') }}", "ABC0"),
        ("{% macro column_() %}{% endmacro %}{{ column('a b') }}", "AB"),
        ("{% set column = 3 %}{{ column }}{{ column('a b') }}", "3AB"),
        ("{% for column in tags %}{{ column }}{{ column('a b') }}{% endfor %}", "xAByAB"),
        ("{% macro self_() %}{% endmacro %}{{ self }}{{ column('self') }}", "SS"),
    ],
)
def test_no_variable_hides_a_column_that_is_spelled(template: str, text: str) -> None:
    cells = {"tags": ["x", "y"], "t": "T", "loop": "L", "a b": "AB", "column_": "C", "0column": "0", "self": "S"}
    assert fill(template, **cells) == text


def test_a_spelled_column_that_has_a_functions_name_is_asked_for() -> None:
    assert PromptTemplate("{{ range(2) }}{{ column('range') }}").columns(["x"]) == ("range",)


OTHERS = {
    "a loop": "loop",
    "a method of a loop": "loop.cycle",
    "a macro": "shout",
    "a namespace": "namespace()",
    "a list of them": "[loop]",
    "a struct of them": "{'a': loop.cycle}",
}
PRINTS = [
    *("X", "X ~ ''", "'a' ~ X", "X | string", "X | upper"),
    *("'%s' % [X]", "'%s' | format(X)", "[X] | join", "[X] | tojson"),
]


@pytest.mark.parametrize("print_", PRINTS)
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_no_cell_is_never_printed(other: str, print_: str) -> None:
    body = print_.replace("X", f"({other})")
    template = "{% macro shout(a) %}{{ a }}{% endmacro %}{% for i in x %}{{ " + body + " }}{% endfor %}"
    with pytest.raises(FAILURES):
        fill(template, x=[1])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ tags | map('upper') }}", '["A", "B"]'),
        ("{{ tags | map('upper') | string }}", '["A", "B"]'),
        ("{{ tags | reverse ~ '!' }}", '["b", "a"]!'),
        ("{{ tags | join('+') }}", "a+b"),
        ("{{ [true, 1.5, 'é'] | join('+') }}{{ tags[0] }}", "true+1.5+éa"),
        ("{{ who | items | list }}", '[["items", "é"], ["n", null]]'),
        ("{{ who }}", '{"items": "é", "n": null}'),
        ("{{ [who, who] | map(attribute='items') | join }}", "éé"),
        ("{{ [who] | groupby('items') | map(attribute='grouper') | first }}", "é"),
        ("{{ '%s %d' % (flag, n) }} {{ '%s' | format(flag) }}", "true 7 true"),
        ("{{ flag }} {{ not flag }} {{ n == 7 }}", "true false true"),
        ("{{ who | tojson }}", '{"items": "\\u00e9", "n": null}'),
        ("{{ price }} {{ price | round(1) }}", "1.25 1.2"),
        ("{{ words | split(' ') | length }}", "2"),
        ("{{ day | strftime('%d %B %Y') }}", "02 January 2026"),
        ("{{ at | strftime('%H:%M:%S.%f') }}", "03:04:05.000000"),
        ("{{ self }} {{ self_ }}", "me other"),
        ("{% for tag in tags %}{{ loop.index }}{{ tag }}{% endfor %}", "1a2b"),
        ("{% macro twice(a) %}{{ a }}{{ a }}{{ n }}{% endmacro %}{{ twice(words) }}", "b ab a7"),
        ("{{ who.missing | default('none') }} {{ who.missing is defined }}", "none false"),
    ],
)
def test_filters_take_and_give_cells(template: str, text: str) -> None:
    cells: dict[str, Any] = {
        "tags": ["a", "b"],
        "who": {"items": "é", "n": None},
        "flag": True,
        "n": 7,
        "price": 1.25,
        "words": "b a",
        "day": "2026-01-02",
        "at": "2026-01-02 03:04:05.000000001Z",
        "self": "me",
        "self_": "other",
    }
    assert fill(template, **cells) == text


@pytest.mark.parametrize("body", ["x ~ 'a'", "x | upper", "[x] | join", "'%s' % x", "'%s' | format(x)", "x | string"])
def test_a_null_is_never_written_out(body: str) -> None:
    with pytest.raises(ValueError, match="is NULL"):
        fill(f"{{{{ {body} }}}}", x=None)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ x | random }}", "No filter named 'random'"),
        ("{{ x | pprint }}", "No filter named 'pprint'"),
        ("{% block a %}{{ x }}{% endblock %}", "block, include, import and extends are not there"),
        ("{{ ﬁ }}{{ fi }}", "the names 'ﬁ' and 'fi' differ in form alone"),
        ("{{ x or none }}", "none is Jinja's word and a column's name"),
        ("{{ my text }}", "got 'text' (a column such as 'my column' is written column('my column'))"),
        ("{{ x }}\n{{ column(x) }}", "line 2: column takes a name in quotes; a column such as 'my column' is written"),
    ],
)
def test_a_template_that_is_refused_before_any_row(template: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        PromptTemplate(template).columns(["x", "none"])


def test_a_method_is_told_with_what_to_write() -> None:
    with pytest.raises(TemplateError, match="a value has no methods; write 'upper' as a filter"):
        fill("{{ x.upper() }}", x="a")
