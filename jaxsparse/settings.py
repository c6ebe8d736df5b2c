"""What the settings of all programs have in common."""

from collections.abc import Mapping

from jaxsparse.errors import JaxsparseError


class SettingsError(JaxsparseError):
    """Settings out of range."""


def check_ranges(settings: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuses settings that are outside of their ranges.

    Args:
        settings: Has them as attributes.
        ranges: Lowest and highest values by the settings' names.

    Raises:
        SettingsError: If one is outside, or NaN.
    """
    for name, (low, high) in ranges.items():
        # NaN is in no range.
        if not low <= getattr(settings, name) <= high:
            raise SettingsError(f"{name} must be a number from {low:g} to {high:g}")


def check_least(settings: object, least: Mapping[str, int | float]) -> None:
    """Refuses settings below their lowest values; None is fine.

    Args:
        settings: Has them as attributes.
        least: Lowest values by the settings' names.

    Raises:
        SettingsError: If one is lower, or NaN.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise SettingsError(f"{name} must be at least {bound}")
