"""Settings that are options of a command too, and the errors they are told in."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, get_args, get_origin

AXES = ("data", "model")


class InputError(ValueError):
    """A file given to a command cannot be used: told in a line, without a traceback."""

    status = 2


def option(default, help, metavar=None, choices=None):
    """A field of the settings, which is an option of the command too."""
    metadata = {"help": help, "metavar": metavar, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def argument(help, metavar, choices=None):
    """A field of the settings that the command takes by its place."""
    metadata = {"help": help, "metavar": metavar, "choices": choices}
    return dataclasses.field(metadata=metadata)


def value_type(field: dataclasses.Field) -> tuple[Any, bool]:
    """The type of a field's values, and whether it holds several of them."""
    several = get_origin(field.type) is tuple
    return (get_args(field.type)[0] if get_args(field.type) else field.type), several


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes of the axes of a mesh written as `data=4,model=2`.

    Raises:
        ValueError: if it is written otherwise.
    """
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                "mesh must give sizes of at least 1 to the axes data and model, such"
                f" as data=4,model=2; got {text!r}"
            )
        sizes[name] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def prepare_folder(path: Path) -> None:
    """Makes a folder, and sees that files can be written there.

    Raises:
        OSError: if not.
    """
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


def read_settings(path: Path, settings_class: type) -> dict[str, Any]:
    """The settings in a JSON file: an object of the names of the options.

    Args:
        path: the file, such as the `settings.json` that a run wrote.
        settings_class: the dataclass of the settings.

    Raises:
        InputError: if there is no such file, it is no JSON object, or has a name or a
            value that is not of the settings.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"settings {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"settings {path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"settings {path} must hold an object, got {content!r}")
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    for name in content:
        if name not in fields:
            raise InputError(
                f"settings {path}: {name!r} is no setting; there are"
                f" {', '.join(fields)}"
            )
    return {
        name: _from_json(path, fields[name], value) for name, value in content.items()
    }


def _from_json(path: Path, field: dataclasses.Field, value: Any) -> Any:
    kind, several = value_type(field)
    values = value if several and isinstance(value, list) else [value]
    if value is None and field.default is None:
        return None
    accepted = {float: (int, float), Path: str}.get(kind, kind)
    for each in values:
        wrong = isinstance(each, bool) and kind is not bool
        if wrong or not isinstance(each, accepted) or several is not (values is value):
            kinds = f"a list of {kind.__name__}" if several else kind.__name__
            raise InputError(
                f"settings {path}: {field.name} must be {kinds}, got {value!r}"
            )
    converted = tuple(kind(each) for each in values)
    return converted if several else converted[0]
