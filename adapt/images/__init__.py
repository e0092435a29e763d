"""The labelled images a search is given: folders, archives, checks, folds. No torch."""
