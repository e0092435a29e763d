"""How sure a measured share is."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share, as fractions.

    Unlike the normal approximation it stays inside [0, 1] and has a width where all or none of the images count.

    Args:
        hits: how many of the images count.
        n: how many there are, at least 1.

    Raises:
        ValueError: n below 1, or hits outside [0, n].

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest  # takes a second to import

    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"expected 0 <= hits <= n and n >= 1, got {hits} hits of {n}")
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
