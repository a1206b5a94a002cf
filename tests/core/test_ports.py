"""Whether values fit a component's ports."""

from __future__ import annotations

import pytest

from finery.core import ports
from finery.core.errors import Invalid
from finery.core.jobs import Input

PORTS = {
    "model": {"type": "mlflow_model", "mode": "rw_mount"},
    "stage": {"type": "string", "optional": True, "default": "2", "enum": ["2", "3"]},
    "epochs": {"type": "integer", "optional": True, "default": "1", "min": 1, "max": 9},
    "rate": {"type": "number", "optional": True, "default": "2e-05"},
    "shuffle": {"type": "boolean", "optional": True},
}
MODEL = Input(value="asset:model/ws/m/1", type="mlflow_model")


def check(**values: str) -> dict[str, Input]:
    given = {name: Input(value=value) for name, value in values.items()}
    return ports.check(PORTS, {"model": MODEL, **given}, "step 'a'")


def test_defaults_are_filled_in_and_what_is_optional_without_one_stays_unset():
    found = check()
    assert {name: value.value for name, value in found.items()} == {
        "model": "asset:model/ws/m/1",
        "stage": "2",
        "epochs": "1",
        "rate": "2e-05",
    }


def test_a_port_says_how_its_data_comes_where_the_caller_does_not():
    assert check()["model"].mode == "rw_mount"


@pytest.mark.parametrize(
    "name, text",
    [("rate", "5e-6"), ("rate", "1"), ("epochs", "9"), ("stage", "3"), ("shuffle", "True")],
)
def test_a_value_that_fits_stays_the_text_it_was(name: str, text: str):
    assert check(**{name: text})[name].value == text


@pytest.mark.parametrize(
    "name, text, why",
    [
        ("epochs", "2.5", "a whole number"),
        ("epochs", "0", "1 or more"),
        ("epochs", "10", "9 or less"),
        ("rate", "fast", "a number"),
        ("stage", "1", "one of 2, 3"),
        ("shuffle", "maybe", "true or false"),
        ("epoch", "1", "no input 'epoch'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_field(name: str, text: str, why: str):
    with pytest.raises(Invalid, match=why) as caught:
        check(**{name: text})
    assert caught.value.target == f"inputs.{name}"


def test_a_required_input_must_be_given():
    with pytest.raises(Invalid, match="needs the input 'model'"):
        ports.check(PORTS, {}, "step 'a'")


def test_a_text_is_no_model_and_a_model_no_number():
    with pytest.raises(Invalid, match="was given the text"):
        ports.check(PORTS, {"model": Input(value="m")}, "step 'a'")
    with pytest.raises(Invalid, match="was given a mlflow_model"):
        ports.check(PORTS, {"model": MODEL, "epochs": MODEL}, "step 'a'")


def test_a_binding_fits_until_it_is_followed():
    assert check(epochs="${{parent.inputs.n}}")["epochs"].value == "${{parent.inputs.n}}"


def test_nothing_at_all_leaves_an_optional_number_unset():
    assert "shuffle" not in check(shuffle="")
    assert check(epochs="")["epochs"].value == "1"


def test_a_word_of_a_list_may_be_written_as_python_writes_it():
    flag = {"flag": {"type": "string", "enum": ["true", "false"]}}
    given = {"flag": Input(value="True")}
    assert ports.check(flag, given, "component 'c'")["flag"].value == "true"
