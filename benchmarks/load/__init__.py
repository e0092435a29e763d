"""The running system under mixed load while parts of it are killed."""
