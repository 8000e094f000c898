"""Say why one row of the data cannot be used."""


class BadRow(ValueError):
    """One row cannot be used: an error or, with `data.on_bad_row: skip`, one more of its `reason` in the report."""

    def __init__(self, reason: str, *, field: str, found: str, fix: str) -> None:
        self.reason = reason
        super().__init__(f"{field}: {found}; {fix}" if field else f"{found}; {fix}")
