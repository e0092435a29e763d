"""The commands of the service, imported when they are asked for."""

from training.parsing import Entry, Group

SERVE = Entry("service.start:ServeCommand", "serve the base sets over HTTP, from any directory")
DEMO = Entry("service.demo.digits:Demo", "train digits, serve, shift, adapt: the whole idea in a minute or two")

DATABASE = Group(
    "look after the registry: its schema, its soundness, its backup",
    {
        "upgrade": Entry("service.db:UpgradeCommand", "bring the schema of the registry up to date, or make it"),
        "check": Entry("service.db:CheckCommand", "check that the registry is sound and that every current soup loads"),
        "rebase": Entry("service.db:RebaseCommand", "move deployments to the new weights of their base set"),
        "identity": Entry("service.db:IdentityCommand", "say whether the database was copied or moved"),
        "backup": Entry("service.db:BackupCommand", "write a consistent copy to a new file, while the service runs"),
    },
)
KEYS = Group(
    "make API keys, list them, take them back",
    {
        "add": Entry("service.keys:AddCommand", "make a key and print it"),
        "list": Entry("service.keys:ListCommand", "list names, roles and when the keys were made"),
        "revoke": Entry("service.keys:RevokeCommand", "revoke a key"),
    },
)
REFERENCE = Group(
    "keep trusted images that a promoted soup must stay good on",
    {
        "add": Entry("service.references:AddCommand", "give a deployment reference images and a floor of accuracy"),
        "show": Entry("service.references:ShowCommand", "show what reference images a deployment has"),
        "remove": Entry("service.references:RemoveCommand", "delete the reference images of a deployment"),
    },
)
COMMANDS = Group(
    "serve base sets, and look after what the service keeps",
    {"serve": SERVE, "db": DATABASE, "keys": KEYS, "reference": REFERENCE},
)
