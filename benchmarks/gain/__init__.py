"""See EXPERIMENTS.md."""
