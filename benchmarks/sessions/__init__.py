"""Its report is docs/results/sessions/REPORT.md."""
