"""Base of all sections of a profile."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self) -> set[str]:
        """Return the keys whose value differs from the default."""
        fields = type(self).model_fields
        return {key for key in fields if getattr(self, key) != fields[key].get_default()}
