"""The commands that turn soups into running things, imported when they are asked for."""

from training.parsing import Entry, Group

COMMANDS = Group(
    "turn soups into running things: serving bundles and ONNX files",
    {
        "bundle": Entry("deploy.making:BundleCommand", "build the serving bundle of a base set beside it"),
        "export": Entry("deploy.making:ExportCommand", "write a soup as one self-contained ONNX file"),
        "check": Entry("deploy.making:CheckCommand", "compare a bundle or an exported ONNX file with torch"),
    },
)
