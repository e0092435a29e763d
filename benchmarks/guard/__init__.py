"""What wrong labels do to a deployment, and what a trusted reference set bounds."""
