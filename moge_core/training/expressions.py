"""Learning-rate expressions in `epoch`, e.g. "max(0.0, min(1.0, (epoch - 1000) / 1000))".

The text is parsed into a Python syntax tree of which only arithmetic, comparisons and the functions below are allowed,
and that tree is rebuilt from sympy objects. Nothing of the text is ever executed.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

from moge_core.errors import ConfigError

VARIABLE = "epoch"
CONSTANTS = {"pi": math.pi, "e": math.e, "E": math.e}
FUNCTIONS = {
    "max": "Max",
    "Max": "Max",
    "min": "Min",
    "Min": "Min",
    "abs": "Abs",
    "Abs": "Abs",
    "exp": "exp",
    "log": "log",
    "ln": "log",
    "sqrt": "sqrt",
    "sin": "sin",
    "cos": "cos",
    "tan": "tan",
    "tanh": "tanh",
    "floor": "floor",
    "ceil": "ceiling",
    "ceiling": "ceiling",
    "sign": "sign",
    "Piecewise": "Piecewise",
}
MAX_LENGTH = 1000
MAX_DEPTH = 50

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.Mod: "%", ast.FloorDiv: "//"}
_COMPARISONS = {ast.Lt: "Lt", ast.LtE: "Le", ast.Gt: "Gt", ast.GtE: "Ge", ast.Eq: "Eq", ast.NotEq: "Ne"}


def check_expression(text: str, where: object) -> None:
    """Refuse an expression that holds anything but arithmetic in `epoch` and the allowed functions; imports no sympy.

    Raises:
        ConfigError: syntax error, unknown name, or a construct or call that is not allowed.
    """
    _check(_parse(text, where), text, where)


def compile_expression(text: str, where: object = "lr_lambda") -> Callable[[int], float]:
    """The expression as a function of the number of finished optimiser steps.

    Raises:
        ConfigError: as `check_expression`; the returned function raises it for a value that is not a finite number.
    """
    import sympy

    tree = _parse(text, where)
    _check(tree, text, where)
    # Numbers take part as symbols too: sympy would compute 9**9**9 in full, where floats overflow at once.
    symbols = {VARIABLE: sympy.Symbol(VARIABLE, real=True)}
    numbers: list[float] = []
    expression = _to_sympy(tree, symbols, numbers, sympy)
    function = sympy.lambdify(list(symbols.values()), expression, modules="math")

    def value_at(epoch: int) -> float:
        try:
            value = float(function(float(epoch), *numbers))
        except (ArithmeticError, ValueError, TypeError) as error:
            raise _no_number(where, text, epoch, error) from error
        if not math.isfinite(value):
            raise _no_number(where, text, epoch, value)
        return value

    return value_at


def _no_number(where: object, text: str, epoch: int, found: object) -> ConfigError:
    return ConfigError(where, "must be a finite number at every step", found=f"{found} from {text!r} at epoch {epoch}")


def _parse(text: str, where: object) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ConfigError(where, f"must be an expression of at most {MAX_LENGTH} characters", found=len(text))
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(where, "must be an arithmetic expression in `epoch`", found=repr(text)) from error


def _check(node: ast.AST, text: str, where: object, depth: int = 0) -> None:
    def refuse(what: str, fix: str) -> ConfigError:
        return ConfigError(where, f"{what} is not allowed in a learning-rate expression", found=repr(text), fix=fix)

    if depth > MAX_DEPTH:
        raise refuse("nesting this deep", "Write it shorter.")
    match node:
        case ast.Constant(value=value):
            if isinstance(value, bool | int | float) and abs(value) < 1e300:
                return
            raise refuse(f"the value {value!r}", "Use finite numbers.")
        case ast.Name(id=name):
            if name != VARIABLE and name not in CONSTANTS:
                raise refuse(f"the name `{name}`", f"Use `{VARIABLE}` and {', '.join(sorted(CONSTANTS))}.")
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS and args:
            if not all(isinstance(arg, ast.Tuple) == (name == "Piecewise") for arg in args):
                raise refuse(f"this form of `{name}`", "Piecewise takes (value, condition) pairs, the others numbers.")
            for arg in args:
                _check(arg, text, where, depth + 1)
        case ast.Call(func=func):
            called = ast.unparse(func)
            raise refuse(f"the call of `{called}`", f"Allowed functions: {', '.join(sorted(FUNCTIONS))}.")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, text, where, depth + 1)
            _check(right, text, where, depth + 1)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            _check(operand, text, where, depth + 1)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARISONS for op in ops):
            for part in (left, *comparators):
                _check(part, text, where, depth + 1)
        case ast.Tuple(elts=[value, condition]):
            _check(value, text, where, depth + 1)
            _check(condition, text, where, depth + 1)
        case _:
            raise refuse(f"`{ast.unparse(node)}`", "Use numbers, `epoch`, + - * / ** % // and the allowed functions.")


def _to_sympy(node: ast.AST, symbols: dict[str, Any], numbers: list[float], sympy: Any) -> Any:
    """The tree as a sympy expression; each number gets a symbol in `symbols` and its value a place in `numbers`."""

    def convert(part: ast.AST) -> Any:
        return _to_sympy(part, symbols, numbers, sympy)

    def number(value: float) -> Any:
        numbers.append(float(value))
        name = f"number_{len(numbers)}"
        return symbols.setdefault(name, sympy.Symbol(name, real=True))

    match node:
        case ast.Constant(value=bool() as value):
            return sympy.true if value else sympy.false
        case ast.Constant(value=int() | float() as value):
            return number(value)
        case ast.Name(id=name):
            return symbols[VARIABLE] if name == VARIABLE else number(CONSTANTS[name])
        case ast.Call(func=ast.Name(id=name), args=args):
            return getattr(sympy, FUNCTIONS[name])(*map(convert, args))
        case ast.BinOp(left=left, op=op, right=right):
            a, b = convert(left), convert(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
                case ast.Mod():
                    return sympy.Mod(a, b)
                case ast.FloorDiv():
                    return sympy.floor(a / b)
                case _:
                    return a**b
        case ast.UnaryOp(op=op, operand=operand):
            return -convert(operand) if isinstance(op, ast.USub) else convert(operand)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [convert(part) for part in (left, *comparators)]
            relations = [
                getattr(sympy, _COMPARISONS[type(op)])(a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False)
            ]
            return sympy.And(*relations)
        case ast.Tuple(elts=elements):
            return tuple(map(convert, elements))
    raise AssertionError(f"unchecked node {ast.dump(node)}")
