"""See docs/experiments/2026-11.md."""
