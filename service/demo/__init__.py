"""The demo: adaptation to a shift from end to end, on handwritten digits, with a real server and real load."""
