"""The `xpu_*` options of a run, each declared by the policy that it switches.

A value comes from a keyword (`train(xpu_prefetch=0)`), else from the environment (`YOLO_XPU_PREFETCH=0`), else from the
checkpoint of a resumed run, else it is the option's default. Child processes get what isn't one by their environment.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from .errors import OptionValueError, UnknownOptionError

__all__ = ["RESERVED_NAMES", "TRUE_WORDS", "Option", "Options", "nearest", "unknown_variables"]

T = TypeVar("T", bool, int, float, str)

_PREFIX, _VARIABLE_PREFIX = "xpu_", "YOLO_XPU_"
TRUE_WORDS, _FALSE_WORDS = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
RESERVED_NAMES = frozenset({"amp", "autoload", "child", "errors", "heartbeat", "plugins", "strict", "trainer"})
"""Names that only this package gives to an option, or whose variable `YOLO_XPU_…` isn't an option's."""

_scope: ContextVar[Mapping[str, Any]] = ContextVar("xpu_options", default=MappingProxyType({}))


@dataclass(frozen=True)
class Option(Generic[T]):
    """An option that a user gives as `xpu_<name>=…`.

    Attributes:
        name: The name without `xpu_`.
        default: The value where nobody says anything. Its type is the option's: bool, int, float or str.
        help: What the option does, in one sentence.
        modes: Where it acts: "train", or "all" for validation, prediction and the rest as well.
        words: Words that are values, too, beside those of the option's type.
        tried: Values that `yolo-xpu autotune` may choose among: with none of them another model is trained.
        measured: Values that `yolo-xpu bench --switches` measures as well: autotune needn't, because the default costs
            nothing that they save.
        least: The least number that is a value.
        usual: The value on a device where nobody says anything, given its `DeviceInfo`; None where it is the default
            on every device.
    """

    name: str
    default: T
    help: str
    modes: str = "train"
    words: tuple[str, ...] = ()
    tried: tuple[T, ...] = ()
    measured: tuple[T, ...] = ()
    least: int = 0
    usual: Callable[[Any], T] | None = None

    @property
    def key(self) -> str:
        """The keyword, such as `xpu_prefetch`."""
        return _PREFIX + self.name

    @property
    def variable(self) -> str:
        """The environment variable, such as `YOLO_XPU_PREFETCH`."""
        return _VARIABLE_PREFIX + self.name.upper()

    def understands(self, saved: object) -> bool:
        """Whether what a checkpoint has is a value, and another one than the default; other versions had others."""
        if saved == self.default:
            return False
        try:
            return bool(self.parse(saved) == saved)
        except OptionValueError:
            return False

    def current(self) -> T:
        """Return the value for the call of Ultralytics in progress, for code that has no run to ask.

        Raises:
            OptionValueError: The environment variable has an invalid value.
        """
        in_scope = _scope.get()
        if self.name in in_scope:
            return in_scope[self.name]  # type: ignore[no-any-return]
        return self.from_environment() if self.variable in os.environ else self.default

    def from_environment(self) -> T:
        """Return the value of the environment variable, which must be set.

        Raises:
            OptionValueError: It is invalid.
        """
        return self.parse(os.environ[self.variable], source=self.variable)

    def parse(self, value: object, source: str | None = None) -> T:
        """Read a value that is of the option's type, or a word for it.

        Args:
            value: Such as False, 0 or "off" for an option that is a bool.
            source: Where the value comes from, for the error; by default the keyword.

        Raises:
            OptionValueError: The value is invalid.
        """
        name = source or self.key
        text = str(value).strip()
        parsed: Any = None
        expected = "text"
        if text.lower() in self.words:
            return text.lower()  # type: ignore[return-value]
        if isinstance(self.default, str):
            parsed = text if isinstance(value, str) else None
        elif isinstance(self.default, bool):  # a bool is an int, too
            expected = "True or False"
            parsed = True if text.lower() in TRUE_WORDS else False if text.lower() in _FALSE_WORDS else None
        elif isinstance(self.default, int):
            expected = f"an integer ≥ {self.least}"
            parsed = int(text) if text.isascii() and text.isdigit() and int(text) >= self.least else None
        else:
            expected = f"a number ≥ {self.least}"
            try:
                parsed = float(text)
            except ValueError:
                parsed = None
            parsed = parsed if parsed is not None and self.least <= parsed < math.inf else None
        if parsed is None:
            expected = " or ".join([expected, *map(repr, self.words)])
            raise OptionValueError(f"{name}={value!r} is invalid: it must be {expected}.", name=name, value=value)
        return parsed  # type: ignore[no-any-return]


class Options:
    """The values of a run's options: `options[PREFETCH]`.

    Args:
        values: Values by option name; an option that isn't there has its default.
        given: Names of the options that the user gave, as a keyword, in the environment, or to the run that is resumed.
        tuned: Values that were measured to be faster than the defaults, by option name; what was given comes first.
    """

    def __init__(
        self,
        values: Mapping[str, Any] = MappingProxyType({}),
        given: Iterable[str] = (),
        tuned: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._given = frozenset(given)
        self._untuned = dict(values)
        self._tuned = {name: value for name, value in tuned.items() if name not in self._given}
        self._values = {**self._untuned, **self._tuned}

    def __getitem__(self, option: Option[T]) -> T:
        return self._values.get(option.name, option.default)  # type: ignore[no-any-return]

    def on(self, device: Any, option: Option[T]) -> T:
        """Return an option's value on a device, a `DeviceInfo`, on which its default may depend."""
        if option.usual is None or option.name in self._given or option.name in self._tuned:
            return self[option]
        return option.usual(device)

    def is_given(self, option: Option[Any]) -> bool:
        """Whether the user gave the option, rather than left it to its default."""
        return option.name in self._given

    def is_tuned(self, option: Option[Any]) -> bool:
        """Whether the option's value is what was measured to be faster, rather than given or the default."""
        return option.name in self._tuned

    def tuned(self, values: Mapping[str, Any]) -> Options:
        """Return these options with values that were measured to be faster, where the user gave none."""
        return Options(self._untuned, self._given, values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._values == other._values

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Options({self._values})"

    @classmethod
    def resolve(
        cls, declared: Iterable[Option[Any]], given: Mapping[str, Any], saved: Mapping[str, Any] = MappingProxyType({})
    ) -> Options:
        """Combine keywords, the environment and a resumed run's options, the first of which wins.

        Args:
            declared: Every option that there is.
            given: Values given as keywords, by option name.
            saved: Values of the run to resume, by option name.

        Raises:
            OptionValueError: An environment variable has an invalid value.
        """
        chosen: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for option in declared:
            if option.name in given:
                chosen[option.name] = given[option.name]
            elif option.variable in os.environ:
                chosen[option.name] = option.from_environment()
            elif option.understands(saved.get(option.name, option.default)):  # a checkpoint has the defaults as well
                chosen[option.name] = saved[option.name]
            else:
                defaults[option.name] = option.default
        return cls({**defaults, **chosen}, given=chosen)

    def as_dict(self) -> dict[str, Any]:
        """Return the values by option name, of built-in types."""
        return dict(self._values)

    def untuned(self) -> dict[str, Any]:
        """Return the values by option name, without what was measured: that holds for one device."""
        return dict(self._untuned)

    def decided(self) -> dict[str, Any]:
        """Return the values that the user gave, by option name; the others are each process's own defaults."""
        return {name: self._values[name] for name in self._values if name in self._given}

    @staticmethod
    def pop_from(overrides: MutableMapping[str, Any], declared: Iterable[Option[Any]]) -> dict[str, Any]:
        """Take every `xpu_*` key out of the arguments of a call, because Ultralytics refuses unknown ones.

        Args:
            overrides: The arguments, from which the keys are removed.
            declared: Every option that there is.

        Returns:
            What was given, by option name.

        Raises:
            UnknownOptionError: No option has that name.
            OptionValueError: A value is invalid.
        """
        known = {option.key: option for option in declared}
        given = {key: overrides.pop(key) for key in [key for key in overrides if key.startswith(_PREFIX)]}
        for key, value in given.items():
            if key not in known:
                names = nearest(key[len(_PREFIX) :].lower(), [option.name for option in known.values()])
                near = [_PREFIX + name for name in names]
                hint = f"Did you mean {' or '.join(near)}?" if near else f"The options are {', '.join(sorted(known))}."
                raise UnknownOptionError(f"There is no option {key!r}. {hint}", name=key, value=value, suggestions=near)
        return {known[key].name: known[key].parse(value) for key, value in given.items()}

    @staticmethod
    @contextmanager
    def scope(values: Mapping[str, Any], *, nested: bool = True) -> Iterator[None]:
        """Let `Option.current()` return these values.

        Args:
            values: Values by option name.
            nested: Whether those already in scope hold as well, for the options that aren't among these.
        """
        token = _scope.set({**(_scope.get() if nested else {}), **values})
        try:
            yield
        finally:
            _scope.reset(token)

    @staticmethod
    def in_scope() -> Mapping[str, Any]:
        """Return the values in scope, by option name."""
        return _scope.get()

    @staticmethod
    def environment_of(values: Mapping[str, Any]) -> dict[str, str]:
        """Return the environment variables that give a child process these values, by option name."""
        return {
            _VARIABLE_PREFIX + name.upper(): str(int(value) if isinstance(value, bool) else value)
            for name, value in values.items()
        }


def unknown_variables(declared: Iterable[Option[Any]]) -> dict[str, list[str]]:
    """Return the variables `YOLO_XPU_…` of this process that nobody reads, each with the nearest that somebody does.

    Args:
        declared: Every option that there is.
    """
    known = {option.name for option in declared} | RESERVED_NAMES
    found = (name for name in sorted(os.environ) if name.startswith(_VARIABLE_PREFIX))
    names = {variable: variable[len(_VARIABLE_PREFIX) :].lower() for variable in found}
    return {
        variable: [_VARIABLE_PREFIX + near.upper() for near in nearest(name, known)]
        for variable, name in names.items()
        if name not in known
    }


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three of the known names that a misspelt one may have meant, best first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.65)
