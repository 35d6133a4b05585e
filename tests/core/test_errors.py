import pytest

from synthgen.core import errors


@pytest.mark.parametrize(
    ("name", "code", "base"),
    [
        ("RequestError", 2, ValueError),
        ("RecipeError", 2, ValueError),
        ("SchemaError", 3, ValueError),
        ("GeometryError", 3, ValueError),
        ("StoreError", 3, OSError),
        ("LeakageError", 3, ValueError),
    ],
)
def test_every_error_has_an_exit_code_and_a_builtin_base(name, code, base):
    error = getattr(errors, name)
    assert issubclass(error, errors.SynthgenError)
    assert issubclass(error, base)
    assert error.exit_code == code
    assert str(error("one line")) == "one line"
