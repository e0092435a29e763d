"""From labelled images to a candidate with its evidence."""
