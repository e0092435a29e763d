"""See REPORT.md beside this file."""
