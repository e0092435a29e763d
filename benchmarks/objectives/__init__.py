"""See REPORT.md."""
