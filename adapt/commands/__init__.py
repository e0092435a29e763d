"""`saucier adapt ...`, one module for each command."""
