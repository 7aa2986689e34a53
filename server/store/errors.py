"""What can go wrong with the store."""


class StoreError(RuntimeError):
    """The store cannot be used as it is; the message says what to do."""


class StoreUnreachable(StoreError):
    """The database's server could not be reached, or refused; it may be there later."""


class Superseded(StoreError):
    """Somebody else was first: another version became active, or another attempt was made."""


class Rewound(StoreError):
    """The store has lost what was read from it: it was restored from a copy, or its database failed over to one."""


class StoreUnavailable(Exception):
    """The database did not take or give something in time; it may later."""
