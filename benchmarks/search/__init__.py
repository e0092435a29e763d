"""Its report is docs/results/search/REPORT.md."""
