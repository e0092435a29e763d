"""The commands that find and judge soups, imported when they are asked for."""

from training.parsing import Entry, Group

COMMANDS = Group(
    "find the soup that suits a few labelled images, and measure soups",
    {
        "search": Entry("adapt.commands.search:SearchCommand", "find the best soup for a few labelled images"),
        "evaluate": Entry("adapt.commands.evaluate:EvaluateCommand", "measure soups on labelled images"),
        "default": Entry("adapt.commands.default:DefaultCommand", "choose the soup that a base set starts with"),
        "plot": Entry(
            "adapt.commands.plot:PlotCommand", "print what a search found, from its report.json, and draw it again"
        ),
        "fronts": Entry("adapt.robustness.fronts:FrontsCommand", "attack the soups between ingredients and draw them"),
        "attack": Entry("adapt.robustness.attack:Attack", "attack soups: clean, robust and union accuracy"),
    },
)
