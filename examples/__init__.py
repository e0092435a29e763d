"""Programs that show the whole of Saucier at work."""
