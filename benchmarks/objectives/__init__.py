"""Its report is docs/results/objectives/REPORT.md."""
