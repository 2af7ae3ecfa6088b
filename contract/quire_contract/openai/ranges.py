"""How a number, a list or a text outside its bounds is refused: by the field's name, with what is allowed."""

from quire_contract.openai.errors import invalid


def check_range(name: str, value: int | None, low: int, high: int | None) -> None:
    """A number between `low` and `high`, both included; None: no bound."""
    if value is None or (value >= low and (high is None or value <= high)):
        return
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    raise invalid(name, f"{short(value)} is out of range; it must be {allowed}")


def check_count(name: str, count: int, most: int) -> None:
    """A list's entries."""
    if count > most:
        raise invalid(name, f"has {count} entries; at most {most} are allowed")


def check_text(name: str, value: str | None, max_chars: int) -> None:
    """A text's characters."""
    if value is not None and len(value) > max_chars:
        raise invalid(name, f"has {len(value)} characters; at most {max_chars} are allowed")


def short(value: int) -> str:
    """A number as text; Python refuses to print integers of thousands of digits."""
    return str(value) if abs(value) < 2**64 else "a number of more than 64 bits"
