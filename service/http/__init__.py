"""The HTTP contract: routes, requests, answers, errors, and who may ask."""
