"""The checker of JSON values: what fits, and the message for what does not."""

import codecs

import pytest

from semopo_tf.errors import DataError
from semopo_tf.storage.records import read_records
from semopo_tf.storage.schema import read_object, unfit

PATTERN = {"name": str, "size": int, "score?": float, "kind": ("a", "b"), "rows": [{"on": bool, "any?": object}]}
GOOD = {"name": "x", "size": 3, "kind": "b", "rows": [{"on": True}], "more": [1]}


@pytest.mark.parametrize(
    "change", [{}, {"score": 1}, {"score": -1.5}, {"rows": []}, {"size": 10**400}, {"score": 10**400}]
)
def test_what_fits(change):
    assert unfit(GOOD | change, PATTERN) == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "expected a JSON object, received int"),
        ({"name": "x"}, "missing size, kind, rows"),
        (GOOD | {"name": None}, "expected name as a JSON text, received NoneType"),
        (GOOD | {"size": True}, "expected size as a JSON whole number, received bool"),
        (GOOD | {"size": 1.0}, "expected size as a JSON whole number, received float"),
        (GOOD | {"score": float("nan")}, "expected score as a JSON number, received float"),
        (GOOD | {"score": "1"}, "expected score as a JSON number, received str"),
        (GOOD | {"kind": "c"}, "expected kind as one of a, b, received 'c'"),
        (GOOD | {"kind": []}, "expected kind as one of a, b, received []"),
        (GOOD | {"rows": {}}, "expected rows as a JSON list, received dict"),
        (GOOD | {"rows": [{"on": True}, {"on": 1}]}, "expected rows.1.on as a JSON truth value, received int"),
        (GOOD | {"rows": [{}]}, "missing rows.0.on"),
    ],
)
def test_what_is_wrong_is_said_in_words(value, words):
    assert unfit(value, PATTERN) == words


def test_a_set_of_allowed_values_and_a_name_for_the_value():
    assert unfit("c", {"b", "a"}, "kind") == "expected kind as one of a, b, received 'c'"
    assert unfit("a", {"b", "a"}) == ""
    assert unfit({"x": 1}, {"x": str}, "record 3") == "expected record 3.x as a JSON text, received int"


def test_I21_json_with_a_byte_order_mark_is_read_and_utf_16_says_what_it_is(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(codecs.BOM_UTF8 + b'{"a": 1}')
    assert read_object(path, lambda value: "", "mend it") == {"a": 1}
    path.write_bytes(codecs.BOM_UTF8 + b'{"a": 1}\n{"b": 2}\n')
    assert read_records(path) == [{"a": 1}, {"b": 2}]
    path.write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(DataError, match="text in UTF-16; save it as UTF-8"):
        read_object(path, lambda value: "", "mend it")
