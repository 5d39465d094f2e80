"""How long something took, in words."""


def duration(seconds: float) -> str:
    """Return seconds as text: below 90 s in seconds (at least 1), below 90 min in minutes, else in hours."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
