"""Whether coefficients of their own for each stage of the network are worth a rung."""
