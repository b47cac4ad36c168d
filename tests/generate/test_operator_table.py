"""The table of operators in ``docs/generate.md`` is what the rules say."""

from __future__ import annotations

from tests.generate.operator_table import PAGE, page, table


def test_the_page_is_what_the_rules_say():
    assert PAGE.read_text() == page(), "run python -m tests.generate.operator_table"


def test_the_table_has_rules_of_every_kind_and_no_empty_row():
    for operator in ("conv2d", "embedding", "softmax", "gelu", "cat", "max_pool2d", "bitwise_and", "to"):
        assert f"`{operator}`" in table(), operator
    assert "|  |" not in table()
