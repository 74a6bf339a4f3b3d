"""The options of `smoothout`'s commands as lists, which a narrow screen can show.

`{command-options} COMMAND` lists what its `--help-all` does, less the options of
training that `train` and `compare` share, which `{command-options} shared` lists.
Methods are explained at `compare` alone.
"""

import argparse
import dataclasses

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from smoothout_jax.experiments import cli
from smoothout_jax.experiments.commands import COMMANDS, load
from smoothout_jax.experiments.settings import SharedSettings

SHARED = {field.name for field in dataclasses.fields(SharedSettings)}
TRAINING = "train", "compare"


class CommandOptions(SphinxDirective):
    """A definition list: an option with its value, then what it is."""

    required_arguments = 1

    def run(self):
        """The command's description and its options."""
        name = self.arguments[0]
        if name == "shared":
            actions = [each for each in actions_of("compare") if each.dest in SHARED]
            return [listed(actions)]
        hidden = SHARED if name in TRAINING else ()
        actions = [each for each in actions_of(name) if each.dest not in hidden]
        return [plain(COMMANDS[name].description), listed(actions)]


def listed(actions):
    """A list of arguments."""
    items = [
        nodes.definition_list_item(
            "",
            nodes.term("", "", nodes.literal("", written(action))),
            nodes.definition("", plain(explained(action))),
        )
        for action in actions
    ]
    return nodes.definition_list("", *items, classes=["options"])


def plain(text):
    """A paragraph whose hyphens stay two, as in the names of options."""
    return nodes.paragraph("", text, support_smartquotes=False)


def actions_of(name):
    """The arguments of a command, as its parser has them."""
    _, parsers = cli._parsers()
    _, settings = load(name)
    cli._add_options(parsers[name], name, settings, all_shown=True)
    helps = "help", "help_all"
    return [each for each in parsers[name]._actions if each.dest not in helps]


def explained(action):
    """What an option is."""
    if action.dest == "method":
        default = action.help.rpartition(" (default: ")[2]
        return f"one of the methods of compare (default: {default}"
    return action.help % vars(action)


def written(action):
    """An option as it is typed: its name, and what its value may be."""
    name = ", ".join(action.option_strings)
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return name
    choices = () if action.dest == "method" else action.choices
    value = action.metavar or "|".join(choices or (action.dest.upper(),))
    several = " …" if action.nargs == "+" else ""
    return f"{name} {value}{several}".strip()


def setup(app):
    """Adds the directive."""
    app.add_directive("command-options", CommandOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
