"""Its report is docs/results/swap/REPORT.md."""
