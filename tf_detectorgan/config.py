"""Defines command options as frozen dataclasses, whose fields are made by `option`.

Each command's module has its own dataclass, the only place with its defaults. `define_flags(Train)` defines
absl flags from the fields, and `read_flags(Train)` returns the parsed values. Models, losses, data and
metrics do not depend on flags; they take plain keyword arguments.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

from absl import flags

from tf_detectorgan.errors import InputError

T = TypeVar("T")


def option(
    default: Any,
    help: str,
    choices: Sequence | None = None,
    low: float | None = None,
    high: float | None = None,
    repeated: bool = False,
    heading: str = "",
    absent: Any = None,
) -> Any:
    """Returns a dataclass field that is also a flag.

    `low` and `high`: inclusive bounds of numbers. `repeated`: the flag is given once per item of a tuple of
    strings, not as a comma-separated list. `heading`: in `help_text`, above this option and those after it.
    `absent`: the value for runs older than the option; None: the default.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "repeated": repeated}
    return dataclasses.field(default=default, metadata=metadata | {"heading": heading, "absent": absent})


def help_text(options: type) -> str:
    """Returns help on all flags: those in `options.BASIC` first, the others under their headings."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    basic = getattr(options, "BASIC", ())
    lines = ["Basic", *(line for name in basic for line in _help_lines(fields[name]))] if basic else []
    heading = "Flags"
    for name, field in fields.items():
        starts, heading = bool(field.metadata["heading"]), field.metadata["heading"] or heading
        if starts or not lines:
            lines += ["", heading] if lines else [heading]
        if name not in basic:
            lines += _help_lines(field)
    return "\n".join(lines)


def _help_lines(field: dataclasses.Field) -> list[str]:
    default, choices = field.default, [str(choice) for choice in field.metadata["choices"] or ()]
    shown = _text(default).lower() if isinstance(default, bool) else _text(default)
    text = field.metadata["help"]
    if any(choice not in text for choice in choices):
        text += f" One of {', '.join(choices)}."
    return [
        f"  --{field.name}={shown}",
        *textwrap.wrap(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def define_flags(options: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag per field: bool, int, float, str, or a comma-separated tuple of these."""
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        kind, meta = types[field.name], field.metadata
        default: Any = field.default
        given: Any = {"name": field.name, "help": meta["help"], "flag_values": values}
        if kind in (int, float):
            define: Any = flags.DEFINE_integer if kind is int else flags.DEFINE_float
            define(default=default, lower_bound=meta["low"], upper_bound=meta["high"], **given)
        elif kind is str and meta["choices"]:
            flags.DEFINE_enum(default=default, enum_values=meta["choices"], **given)
        elif kind in (bool, str):
            (flags.DEFINE_bool if kind is bool else flags.DEFINE_string)(default=default, **given)
        elif meta["repeated"]:
            flags.DEFINE_multi_string(default=list(default), **given)
        else:
            flags.DEFINE_list(default=_text(default), **given)


def parse(options: type[T], words: Sequence[str]) -> T:
    """Returns the options for the command-line arguments `words`, such as "--flagfile=configs/demo.flags".

    Raises:
      InputError: a flag is unknown, or as `read_flags` and `flagfile_lines`.
    """
    values = flags.FlagValues()
    define_flags(options, values)
    try:
        values(["command", *files_first(words, renamed(options))])
    except flags.Error as error:
        raise InputError(str(error)) from error
    return read_flags(options, values)


class NewName(NamedTuple):
    """The current name of an option, and the current names of its renamed values."""

    name: str
    values: Mapping[str, str] = {}


def renamed(options: type) -> Mapping[str, NewName]:
    """Returns the renamed options by their old names: `options.RENAMED`, or nothing."""
    return getattr(options, "RENAMED", {})


def files_first(words: Sequence[str], new_names: Mapping[str, NewName] = {}) -> list[str]:
    """Returns a command line with the lines of its flagfiles before the other flags, under current names.

    absl uses the last value of a flag, so the command line overrides flagfiles. `new_names`: from `renamed`.

    Raises:
      InputError: as `flagfile_lines`.
    """
    lines, others = list[str](), list[str]()
    rest = iter(words)
    for word in rest:
        name, equals, file = word.partition("=")
        if name in ("-flagfile", "--flagfile"):
            lines += flagfile_lines(Path(file if equals else next(rest, "")))
        else:
            others.append(word)
    return [_with_current_name(word, new_names) for word in [*lines, *others]]


def _with_current_name(word: str, new_names: Mapping[str, NewName]) -> str:
    name, equals, value = word.partition("=")
    if not name.startswith("-") or name.lstrip("-") not in new_names:
        return word
    current = new_names[name.lstrip("-")]
    return f"--{current.name}{equals}{current.values.get(value, value)}"


def flagfile_lines(file: Path, inside: tuple[Path, ...] = ()) -> list[str]:
    """Returns the flags of a flagfile, one per item, and of the files that it includes by --flagfile.

    Included files are relative to the folder of the flagfile. `inside`: the files that include this one.

    Raises:
      InputError: a file cannot be read, or includes itself.
    """
    file = file.expanduser()
    if file in inside:
        raise InputError(f"--flagfile={file}: includes itself")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--flagfile={file}: cannot be read ({error})") from error
    lines = list[str]()
    for line in map(str.strip, text.splitlines()):
        name, _, included = line.partition("=")
        if name in ("-flagfile", "--flagfile"):
            lines += flagfile_lines(file.parent / included, (*inside, file))
        elif line and not line.startswith(("#", "//")):
            lines.append(line)
    return lines


def read_flags(options: type[T], values: flags.FlagValues = flags.FLAGS) -> T:
    """Returns the parsed flags as an `options` object.

    Raises:
      InputError: a value is not among its choices, or an item of a list is not of the field's type.
    """
    types = get_type_hints(options)
    arguments = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = values[field.name].value
        if isinstance(value, list):
            value = _items(field, value, types[field.name].__args__[0])
        _check_choices(field, value if isinstance(value, tuple) else (value,))
        arguments[field.name] = value
    return options(**arguments)


def to_flags(options: Any) -> list[str]:
    """Returns flags from which `parse` returns `options`; no field may be `repeated`."""
    return [f"--{name}={_text(value)}" for name, value in dataclasses.asdict(options).items()]


def _text(value: Any) -> str:
    """Returns a value as the text of its flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _items(field: dataclasses.Field, items: list[str], kind: type) -> tuple:
    try:
        return tuple(kind(item.strip()) for item in items if item.strip())
    except ValueError as error:
        raise InputError(
            f"--{field.name}={','.join(items)}: every item must be {kind.__name__} ({error})"
        ) from error


def _check_choices(field: dataclasses.Field, values: tuple) -> None:
    choices = field.metadata["choices"]
    for value in values:
        if choices and value not in choices:
            raise InputError(f"--{field.name}: {value!r} is none of {', '.join(map(str, choices))}")


def from_json(options: type[T], text: str, source: str) -> T:
    """Returns the options that `to_json` wrote; `source` is the name of the file in errors.

    In files of older versions, old names are replaced, and missing fields get `absent` or the default.

    Raises:
      InputError: `text` is not JSON, or a field is unknown.
    """
    try:
        written = json.loads(text)
    except ValueError as error:
        raise InputError(f"{source}: not JSON ({error})") from error
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        absent = field.metadata["absent"]
        values[field.name] = field.default if absent is None else absent
    unknown = []
    for name, value in written.items():
        current = renamed(options).get(name, NewName(name))
        if current.name not in values:
            unknown.append(name)
        values[current.name] = current.values.get(value, value) if isinstance(value, str) else value
    if unknown:
        raise InputError(
            f"{source}: was written by another version, with options that do not exist in this version: "
            f"{', '.join(sorted(unknown))}; use that version, or a new --run_dir"
        )
    return options(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def to_json(options: Any) -> str:
    """Returns the options as sorted JSON, the content of `config.json`."""
    return json.dumps(dataclasses.asdict(options), indent=2, sort_keys=True)
