"""SVG plots for pages, by matplotlib, with the colours of the page, so that they work in light and dark mode."""

import io
from collections.abc import Sequence
from contextlib import contextmanager

from finetune.pages.html_page import escape, missing_packages

# matplotlib draws in these placeholder colours, which are replaced by CSS variables (page.css).
INK, LINE = "#010101", "#020202"
SERIES = ("#030301", "#030302", "#030303", "#030304")
PLACES = {INK: "currentColor", LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
COLUMNS = 4  # panels per row
DASHES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")  # distinguishable without colours

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "hatch.color": INK,
    "hatch.linewidth": 0.4,
}


@contextmanager
def drawing(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """(figure, its axes (rows, columns)); sizes in inches. matplotlib's global state is not changed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_packages("pages", "matplotlib", error) from None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def plot(figure, name: str, caption: str) -> str:
    """The HTML of a figure. name: unique on the page; it also makes the ids inside the SVG unique."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for colour, own in PLACES.items():
        text = text.replace(colour, own)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    return f'<figure class="plot" id="{name}"><div>{text}</div><figcaption>{escape(caption)}</figcaption></figure>'


def percent_axis(axes, values: Sequence[float]) -> None:
    """Formats the y axis, with values between 0 and 1, in percent and limits it to the range of the values."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1))  # as many decimals as tell the ticks apart
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if values:
        low, high = min(values), max(values)
        margin = max(0.05 * (high - low), 0.01)
        axes.set_ylim(max(0, low - margin), min(1, high + margin))


def whole_steps(axes, count: int = 4) -> None:
    """Limits the x axis to about `count` ticks at integers."""
    from matplotlib.ticker import MaxNLocator

    # With the two ticks that it makes by default, those of a single step would not be integers.
    axes.xaxis.set_major_locator(MaxNLocator(count, integer=True, min_n_ticks=1))


def panels(axes, names: Sequence[str]):
    """(axes, name) of each panel; unused axes are removed."""
    for number, axis in enumerate(axes.flat):
        if number < len(names):
            axis.tick_params(labelbottom=number + axes.shape[1] >= len(names))
            yield axis, names[number]
        else:
            axis.remove()


def legend(figure, axes) -> None:
    """One legend for all panels, without duplicate labels."""
    found = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=min(len(found), 6))
