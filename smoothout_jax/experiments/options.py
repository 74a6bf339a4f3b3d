"""Settings as typed fields, each of which is also an option of a command."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from smoothout_jax import _checks

SettingsType = TypeVar("SettingsType", bound="Settings")


class InputError(ValueError):
    """A command cannot use its input: it reports one line, without a traceback."""

    status = 2


def option(
    default: Any,
    help: str,
    metavar: str | None = None,
    *,
    choices: Iterable[str] = (),
    machine: bool = False,
    common: bool = False,
) -> Any:
    """Declares a field of the settings that is an option of the command.

    Args:
        default: its default.
        help: its help text.
        metavar: what stands for its value in the help text.
        choices: accepted values, such as a registry; those of a `Literal` type need not
            be repeated here.
        machine: whether it describes the machine, and not what is trained; such
            settings are not written to JSON.
        common: whether `--help` shows it; `--help-all` shows every option.
    """
    metadata = {
        "help": help,
        "metavar": metavar,
        "choices": choices,
        "machine": machine,
        "common": common,
    }
    return dataclasses.field(default=default, metadata=metadata)


def argument(help: str, metavar: str, **options: Any) -> Any:
    """Declares a field of the settings that is a positional argument."""
    return option(dataclasses.MISSING, help, metavar, common=True, **options)


class Kind(NamedTuple):
    """What values a field holds.

    Attributes:
        type: the type of one value.
        several: whether it holds a tuple of them.
        choices: accepted values; empty if any value of the type is.
        words: words that are accepted beside values of the type.
    """

    type: type
    several: bool
    choices: Any
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, field: dataclasses.Field) -> "Kind":
        """The kind of a field, from its type and its choices."""
        several = get_origin(field.type) is tuple
        types = get_args(field.type)
        if get_origin(field.type) is Literal:
            return cls(type(types[0]), several, types)
        kind: Any = types[0] if types else field.type
        words = next((get_args(t) for t in types if get_origin(t) is Literal), ())
        return cls(kind, several, field.metadata["choices"], words)

    @property
    def name(self) -> str:
        """What a value is, for messages."""
        return " or ".join((self.type.__name__, *self.words))

    def read(self, given: Any) -> Any:
        """The value that a word of the command line, or of JSON, stands for.

        Raises:
            OverflowError, ValueError: if it stands for none.
        """
        if given in self.words:
            return given
        if self.type is Path and not given:
            raise ValueError("a path must not be empty; use . for the current folder")
        try:
            return self.type(given)
        except ValueError as error:
            raise ValueError(f"must be {self.name}, got {given!r}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a command, or a group of them that commands share.

    Each group checks its own fields when an instance is made.

    Attributes:
        group: the heading of its options in the help.

    Raises:
        TypeError, ValueError: if a value is out of its range, or two values conflict.
    """

    group: ClassVar[str] = "run"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            kind, value = Kind.of(field), getattr(self, field.name)
            choices = kind.words if isinstance(value, str) else ()
            if choices := kind.choices or choices:
                for each in value if kind.several else (value,):
                    _checks.choice(tuple(choices), **{field.name: each})

    @property
    def several_processes(self) -> bool:
        """Whether several processes share the output folder."""
        return False

    def _set(self, **values: Any) -> None:
        """Fills in defaults that depend on other settings."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _given(self, *names: str) -> dict[str, Any]:
        """The values of those fields that are not `None`, by name."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON holds them, without those of this machine."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata["machine"]
        }

    @classmethod
    def from_json(
        cls: type[SettingsType], settings: Mapping[str, Any], **machine: Any
    ) -> SettingsType:
        """The settings that `to_json` gave, with those of this machine."""
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
        }
        return cls(**values, **machine)


def check_not_negative(**values: int) -> None:
    """Requires integers of at least zero."""
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def read_settings(path: Path, settings_class: type[Settings]) -> dict[str, Any]:
    """Reads settings from a JSON file: an object with the names of the options.

    Raises:
        InputError: if the file cannot be read, or has a name or a value that the
            settings do not accept.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"settings {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"settings {path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"settings {path} must hold an object, got {content!r}")
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    for name in content:
        if name not in fields:
            raise InputError(
                f"settings {path}: {name!r} is not a setting; accepted are"
                f" {', '.join(fields)}"
            )
    try:
        return {name: _from_json(fields[name], each) for name, each in content.items()}
    except (OverflowError, ValueError) as error:
        raise InputError(f"settings {path}: {error}") from error


def _from_json(field: dataclasses.Field, value: Any) -> Any:
    kind = Kind.of(field)
    if value is None and field.default is None:
        return None
    values = value if kind.several and isinstance(value, list) else [value]
    accepted: Any = {float: (int, float), Path: str}.get(kind.type, kind.type)
    for each in values:
        wrong = isinstance(each, bool) and kind.type is not bool
        wrong |= not (isinstance(each, accepted) or each in kind.words)
        if wrong or kind.several is not (values is value):
            kinds = f"a list of {kind.name}" if kind.several else kind.name
            raise ValueError(f"{field.name} must be {kinds}, got {value!r}")
    try:
        converted = tuple(map(kind.read, values))
    except ValueError as error:
        raise ValueError(f"{field.name}: {error}") from error
    return converted if kind.several else converted[0]
