"""The version of this code. Not asked of the installed package: a Bento holds the code without installing it."""

VERSION = "0.1.0"
