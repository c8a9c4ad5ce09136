"""On the command line errors name its options, and in Python the keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import typer.main

import bcos_fx
from bcos_fx.cli import calibrate, check, commands, convert, evaluate, explain, finetune, plan
from bcos_fx.cli.spelling import RENAMED, as_options, flags_of, in_options
from bcos_fx.errors import UsageError

COMPARED = (calibrate, check, convert, evaluate, explain, finetune, plan)
COMMANDS = {module.NAME: command for module, command in commands.COMMANDS if module in COMPARED}
_INPUTS = {"module", "model", "images", "inputs", "data", "target"}
# Keywords that no command offers: objects of Python's, or what a command decides itself.
ONLY_IN_PYTHON: dict[str, set[str]] = {
    "convert": {
        "class_names",
        "keep_source",
        "logit_bias",
        "temperature",
        "pool",
        "activation",
        "progress",
    },
    "explain": {"others", "names", "batch_size"},
    "check": {"output"},
    "calibrate": {"batch_size", "memory", "progress"},
    "evaluate": {"shape", "folder", "log"},
}
LIBRARY: dict[str, Callable[..., Any]] = {
    "convert": bcos_fx.bcosify,
    "explain": bcos_fx.explain,
    "check": bcos_fx.certify,
    "calibrate": bcos_fx.calibrate,
    "evaluate": bcos_fx.evaluate,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_spelling_is_the_one_that_the_command_takes(name: str) -> None:
    group: Any = typer.main.get_command(commands.app)
    taken = {parameter.name: parameter for parameter in group.commands[name].params}
    for option, flags in flags_of(COMMANDS[name]).items():
        if flags.given != "--verified":  # it is only ever said no to
            assert flags.given in taken[option].opts
        assert flags.refused is None or flags.refused in taken[option].secondary_opts
        assert flags.is_switch == bool(taken[option].is_flag)


@pytest.mark.parametrize("name", LIBRARY)
def test_every_keyword_of_the_library_is_an_option_or_known_to_be_none(name: str) -> None:
    flags = flags_of(COMMANDS[name])
    keywords = set(inspect.signature(LIBRARY[name]).parameters) - _INPUTS
    missing = {word for word in keywords if word not in flags and RENAMED.get(word) not in flags}
    assert missing == ONLY_IN_PYTHON[name]
    for keyword in keywords - missing:
        error = in_options(UsageError(f"{keyword}= was given", hint=f"give {keyword}=2"), COMMANDS[name])
        assert f"{keyword}=" not in str(error)
        assert "--" in error.what


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('give mean="auto" for it', "give --mean auto for it"),
        ("the recipe fixes b=1.0: no", "the recipe fixes --b 1.0: no"),
        ("with verified=False", "with --no-verify"),
        ("trust_pickle=True opens it", "--trust-pickle opens it"),
        ('one of these with output_key=: "a"', 'one of these with --output-key: "a"'),
        ("x = 3, a==b, f(scale)=2 and scalef=2", "x = 3, a==b, f(scale)=2 and scalef=2"),
        ("at weights.scale=2, --scale=raw", "at weights.scale=2, --scale=raw"),
        ("keep_source=True", "keep_source=True"),
        ("example_inputs=, a batch", "--input-shape, a batch"),
        ("leaf_modules names 'pixel_max'", "--leaf-module names 'pixel_max'"),
        ("at pixel_max.weight, of my_pixel_max, scale is 2", "at pixel_max.weight, of my_pixel_max, scale is 2"),
    ],
)
def test_what_is_said_of_a_keyword(text: str, shown: str) -> None:
    assert as_options(text, flags_of(convert.convert_network)) == shown


def test_a_value_of_several_words_stays_quoted() -> None:
    flags = flags_of(explain.explain_images)
    assert as_options('source="the layer"', flags) == '--source "the layer"'
    assert as_options('output="logits"', flags) == "--output logits"


def test_the_place_is_left_as_it_is() -> None:
    error = in_options(UsageError("scale=2", where="file scale=2.pt", hint="scale=3"), convert.convert_network)
    assert (error.what, error.where, error.hint) == ("--scale 2", "file scale=2.pt", "--scale 3")
