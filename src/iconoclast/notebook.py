"""How runs, trials and edits look in a notebook: small tables, made by a template with escaping on."""

from collections.abc import Sequence
from functools import cache
from typing import Any

BARS = "▁▂▃▄▅▆▇█"

TABLE = """\
<table>
<caption style="text-align: left; font-weight: bold">{{ title }}</caption>
{% if header %}<thead><tr>{% for name in header %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
{% endif %}<tbody>
{% for row in rows %}<tr><th scope="row" style="text-align: left">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td style="text-align: left">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
"""


def table(title: str, rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Return an HTML table; the first cell of a row is its name."""
    return str(_template().render(title=title, rows=rows, header=header))


def bars(values: Sequence[float]) -> str:
    """Draw values as a line of characters, from 0 to the largest of their sizes."""
    most = max(map(abs, values), default=0.0) or 1.0
    return "".join(BARS[round(abs(value) / most * (len(BARS) - 1))] for value in values)


@cache
def _template() -> Any:
    from jinja2 import Environment  # who draws no table need not wait for it

    return Environment(autoescape=True).from_string(TABLE)
