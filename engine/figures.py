"""Figures as a person reads them."""


def figure(value: float, digits: int = 1) -> str:
    """Rounded, with commas; `under 0.1` where rounding would make a zero of what is none."""
    text = f"{value:,.{digits}f}"
    if value > 0 and not float(text.replace(",", "")):
        return f"under {10**-digits:.{digits}f}"
    return text


def percent(fraction: float) -> str:
    return f"{figure(100 * fraction)}%"
