"""Define the error for one row of the data that cannot be used."""


class BadRow(ValueError):
    """A BadRow says why a row cannot be used. With `data.on_bad_row: skip` the report counts it by `reason`."""

    def __init__(self, reason: str, *, field: str, found: str, fix: str) -> None:
        self.reason = reason
        super().__init__(f"{field}: {found}; {fix}" if field else f"{found}; {fix}")
