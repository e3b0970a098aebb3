"""What sections of the settings are made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from edged.wire.request import SamplingFields


class Section(BaseModel):
    """Settings that belong together; a table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """For Python `true` is 1; `port = true` is a mistake."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in (int, float):
            raise ValueError(f"{str(value).lower()} is not a number")
        return value


def key(default: Any, text: str, *, unit: str = "", shown: str = "", **bounds: Any) -> Any:
    """A setting; a callable default is called each time.

    `shown` stands in the documentation where the default is found out on the spot.
    """
    extra: dict[str, Any] = {"unit": unit, "shown": shown}
    if callable(default):
        return Field(default_factory=default, description=text, json_schema_extra=extra, **bounds)
    return Field(default, description=text, json_schema_extra=extra, **bounds)


def sampling(name: str, default: Any) -> Any:
    """The default of a sampling parameter; its meaning and bounds are the request's (edged.wire.request)."""
    field = SamplingFields.model_fields[name]
    limits = {n: getattr(m, n) for m in field.metadata for n in ("ge", "gt", "le", "lt") if hasattr(m, n)}
    return key(default, field.description or "", **limits)
