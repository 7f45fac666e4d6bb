"""Base of all sections of a profile."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Base of all sections: frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` for a number: pydantic would read 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"cannot be {str(value).lower()}")
        return value

    def changed(self) -> set[str]:
        """Return the keys whose value differs from the default."""
        fields = type(self).model_fields
        return {key for key in fields if getattr(self, key) != fields[key].get_default()}
