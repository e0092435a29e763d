"""Its report is docs/results/serving/REPORT.md."""
