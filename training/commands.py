"""The commands of the offline stage, imported when they are asked for."""

from training.parsing import Entry, Group

COMMANDS = Group(
    "make base sets: the offline stage",
    {
        "data": Entry("training.fetching:Fetch", "download CIFAR-10, or convert a download, into folders of images"),
        "init": Entry("training.drafting:Init", "look at a folder of photographs and write a recipe for it"),
        "run": Entry("training.running:Run", "train the ingredients of a recipe and write them as a base set"),
        "import": Entry("training.importing:Import", "make a checkpoint a base set, or an ingredient of one"),
        "convert": Entry("training.convert:Convert", "turn a checkpoint into a safetensors file to start from"),
        "evaluate": Entry("training.evaluate:Evaluate", "attack every ingredient: clean, robust and union accuracy"),
        "moments": Entry("training.adding_moments:AddMoments", "measure how the channels of a base set usually look"),
        "compress": Entry("training.compress:Compress", "write a base set with smaller files and say what that costs"),
        "list": Entry("training.listing:List", "list the base sets below a folder"),
    },
)
