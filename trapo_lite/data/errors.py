"""What can be wrong with data: with all of it, or with one row."""


class DataError(ValueError):
    """The data cannot be used; the message says where, what was found and what to do."""


class BadRow(ValueError):
    """One row cannot be used: an error or, with `data.on_bad_row: skip`, one more of its `reason` in the report."""

    def __init__(self, reason: str, *, field: str, found: str, fix: str) -> None:
        self.reason = reason
        super().__init__(f"{field}: {found}; {fix}" if field else f"{found}; {fix}")
