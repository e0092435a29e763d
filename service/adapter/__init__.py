"""The process that works on adaptation jobs."""
