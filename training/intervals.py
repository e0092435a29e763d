"""How sure a measured share is."""

import math

Z_95 = 1.959963984540054  # 97.5 % of a standard normal lies below


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
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"expected 0 <= hits <= n and n >= 1, got {hits} hits of {n}")
    share = hits / n
    spread = Z_95 * math.sqrt(share * (1 - share) / n + (Z_95 / (2 * n)) ** 2)
    middle, scale = share + Z_95**2 / (2 * n), 1 + Z_95**2 / n
    # Rounding would leave 1e-17 where none counts, and more than 1 where all do.
    low = 0.0 if hits == 0 else (middle - spread) / scale
    high = 1.0 if hits == n else (middle + spread) / scale
    return low, high
