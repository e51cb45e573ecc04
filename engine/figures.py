"""Figures as a person reads them, and the ticks of an axis."""

import math


def figure(value: float, digits: int = 1) -> str:
    """Rounded, with commas; `under 0.1` where rounding would make a zero of what is none."""
    text = f"{value:,.{digits}f}"
    if value > 0 and not float(text.replace(",", "")):
        return f"under {10**-digits:.{digits}f}"
    return text


def percent(fraction: float) -> str:
    return f"{figure(100 * fraction)}%"


def short(value: float) -> str:
    """`1.5k`, `2M`: with as many digits as it takes."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


def ticks(highest: float, most: int = 5) -> list[float]:
    """From 0 to `highest`, in steps of 1, 2 or 5 times a power of ten, `most` steps at most."""
    if highest <= 0:
        return [0.0]
    rough = highest / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
    return [round(step * at, 12) for at in range(int(highest / step + 1e-9) + 1)]
