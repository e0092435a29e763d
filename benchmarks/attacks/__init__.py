"""Its report is docs/results/attacks/REPORT.md."""
