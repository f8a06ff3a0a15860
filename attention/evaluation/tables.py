"""Tables in Markdown."""

from collections.abc import Mapping


def markdown(rows: Mapping[str, Mapping[str, object]], first: str, columns: Mapping[str, tuple[str, str]]) -> str:
    """Rows by name as a table; a column that no row has a value for is left out.

    Args:
        rows: name -> key -> value; one that is None or not there is written "-".
        first: what the names are.
        columns: key -> heading and format, in order.
    """
    used = {key: column for key, column in columns.items() if any(row.get(key) is not None for row in rows.values())}
    lines = [[first, *(heading for heading, _ in used.values())], ["---"] * (len(used) + 1)]
    for name, row in rows.items():
        lines.append([name, *("-" if row.get(key) is None else format(row[key], form) for key, (_, form) in used.items())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
