"""Documents that a search writes and a service reads: soups, patches, landscapes. No torch."""
