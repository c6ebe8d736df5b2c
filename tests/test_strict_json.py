import pytest

from jaxsparse.strict_json import parse_object


@pytest.mark.parametrize("text", ['{"a": [1, {"b": "ü"}]}', '{"a": [1, {"b": "ü"}]}'.encode()])
def test_an_object_is_parsed(text):
    assert parse_object(text) == {"a": [1, {"b": "ü"}]}


def test_what_is_nested_sanely_is_parsed():
    text = '{"a": ' + "[" * 90 + "1" + "]" * 90 + "}"
    assert parse_object(text)["a"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "no object"),
        ("null", "no object"),
        ("3", "no object"),
        ('"text"', "no object"),
        (b'{"a": "\xff"}', "utf-8"),
        ("\ufeff{}", "BOM"),
        ('{"a": ' + "9" * 5000 + "}", "limit"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested too deeply"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested too deeply"),
        ("[" * 10**5, "nested too deeply"),
        ('{"a": ' * 10**5, "nested too deeply"),
    ],
)
def test_anything_else_is_a_value_error_of_one_line(text, fault):
    with pytest.raises(ValueError, match=fault) as error:
        parse_object(text)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("depth", (100, 500, 900, 980))
def test_every_depth_is_one_error_wherever_the_stack_ends(depth):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_object('{"a": ' + "[" * depth + "]" * depth + "}")
