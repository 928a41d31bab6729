"""A hostile template is refused before it takes all memory or the whole stack."""

from __future__ import annotations

import pytest

from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.errors import TemplateError

DOUBLING = "{{% set ns = namespace(x='ab') %}}{{% for i in range(26) %}}{}{{% endfor %}}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 300000000 }}",
        "{{ 300000000 * [1] }}",
        "{{ 10 ** 100000 }}",
        "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
        DOUBLING.format("{% set ns.x = ns.x ~ ns.x %}"),
        DOUBLING.format("{% set ns.x = ns.x + ns.x %}"),
        DOUBLING.format("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    ],
)
def test_template_that_asks_for_gigabytes_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match=r"refused|too large|printed more"):
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "1 + " * 5000 + "1 }}",
        "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    ],
)
def test_template_nested_too_deeply_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot be compiled"):
        ChatTemplate(source)


def test_endless_recursion_of_a_macro_is_refused() -> None:
    template = ChatTemplate("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    with pytest.raises(TemplateError, match="recursion"):
        template.render([{"role": "user", "content": "Hi"}])


def test_joining_and_adding_work_as_in_jinja() -> None:
    rendered = ChatTemplate(
        "{{ 'a' ~ 1 ~ none ~ missing }}{{ 'a' + 'b' }}{{ 4000000000 + 1 }}{{ [1] + [2] }}"
    ).render([{"role": "user", "content": "Hi"}])
    assert rendered == "a1Noneab4000000001[1, 2]"


def test_small_products_still_work() -> None:
    rendered = ChatTemplate("{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 1.5 * 2 }}").render(
        [{"role": "user", "content": "Hi"}]
    )
    assert rendered == "ababab10243.0"
