"""Methods on domains: folders of pictures of a base set's classes, and corruptions of its own held-out pictures."""
