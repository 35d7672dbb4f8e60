"""bertviz's head view (attention as lines between two columns of tokens or regions) on a page that works offline."""

import re
from pathlib import Path

import torch

from finetune.inference.attention_maps import Explanation
from finetune.pages.html_page import missing_packages

VIEWS = ("S->S", "S->I", "I->S")  # I->I would have tens of thousands of lines
DIGITS = 4  # decimals of a weight
REMOTE = re.compile(r"<script src=.*?</script>", re.DOTALL)  # bertviz's scripts that download its libraries

# bertviz loads its libraries by require.js; here they are part of the page.
LOADER = "window.require = {config() {}}; window.requirejs = (names, use) => use(window.jQuery, window.d3);"


def libraries() -> str:
    """The scripts that the views need: jQuery and d3, from installed packages, and LOADER."""
    try:
        from mpld3 import urls
        from xstatic.pkg import jquery
    except ImportError as error:
        raise missing_packages("pages", "mpld3 and XStatic-jQuery", error) from None
    files = Path(jquery.BASE_DIR) / "jquery.min.js", Path(urls.D3_LOCAL)
    codes = [file.read_text(encoding="utf-8") for file in files]
    return "".join(f"<script>{code}</script>\n" for code in (*codes, LOADER))


def head_views(explanation: Explanation) -> dict[str, str]:
    """View -> its HTML, with the last layer selected."""
    try:
        from bertviz import head_view
    except ImportError as error:
        raise missing_packages("pages", "bertviz", error) from None
    sides = {"S": explanation.words, "I": explanation.rows}
    views = {}
    for view in VIEWS:
        weights = torch.from_numpy(explanation.maps[view]).double().round(decimals=DIGITS)
        layers = [layer[None] for layer in weights]
        made = head_view(
            cross_attention=layers,
            decoder_tokens=sides[view[0]],
            encoder_tokens=sides[view[-1]],
            layer=len(layers) - 1,
            prettify_tokens=False,
            html_action="return",
        )
        views[view] = REMOTE.sub("", made.data)
    return views
