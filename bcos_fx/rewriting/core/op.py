"""One canonical operation, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLASSES = frozenset(
    "linear selection ratio gate product quotient normalise attention constant opaque".split(),
)
"""Linearity classes: how an op maps constants, values and gates (see :mod:`bcos_fx.rewriting.core.flow`)."""


@dataclass(frozen=True)
class Op:
    """One canonical operation.

    Attributes:
        name: the canonical name, as rules use it.
        linearity: one of :data:`CLASSES`.
        modules, functions, methods: dotted names of the spellings.
        parameters: names of the call's arguments in order.
        defaults: values of arguments that a call leaves out; an argument not listed defaults to None.
        aliases: other keywords for a parameter.
        attributes: parameter -> attribute of the module, where the names differ.
        inputs: parameters that a module takes in its call; its other parameters are its attributes.
        value: parameters through which a value flows; the rest may only weight it.
        gate: of a product: the factor that is taken for the gate where nothing else tells; by convention.
        constants: parameters that add a constant to the result, such as a bias.
        like: parameters that only give a shape, dtype or device, such as the other tensor of ``x.to(other)``.
        variadic: the parameter that takes all remaining positional arguments, if any.
        rectifier: little of what is negative comes out again.
        view: it stands in explanation views only, so no file can hold it.
        peers: qualified names of other packages' module classes. They are compared, never imported, and no file can
            hold such a module.
        joined: the operands lie beside each other in the result (joined, written into one another): they are not
            broadcast to each other.
        moves: each number of the result is a number of the value, in another place.
        magnitude: it measures how large its input is, so that beside another factor it is the weight.
        family: its spellings are many functions of one kind, so that a message names the function.
        instead: of an op that carries no value: what a network can use in its place.
        weighted: it multiplies the value with a kernel; the parameters of such ops on value paths make up the coverage.
        batch_statistics: it normalizes by statistics that were taken over a batch, and keeps them.
        declared: where a program other than bcos_fx declared it; None for the shipped ops.
    """

    name: str
    linearity: str
    modules: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("input",)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("input",)
    value: tuple[str, ...] = ("input",)
    gate: str | None = None
    constants: tuple[str, ...] = ()
    like: tuple[str, ...] = ()
    variadic: str | None = None
    rectifier: bool = False
    view: bool = False
    peers: tuple[str, ...] = ()
    joined: bool = False
    moves: bool = False
    magnitude: bool = False
    family: bool = False
    instead: str | None = None
    weighted: bool = False
    batch_statistics: bool = False
    declared: str | None = field(default=None, compare=False)
