"""What the settings of all programs have in common."""

from collections.abc import Mapping

from jaxsparse.errors import JaxsparseError


class SettingsError(JaxsparseError):
    """Settings out of range."""


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
