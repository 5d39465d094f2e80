"""The page of all published results beside the literature's: a table for each task, sorted in the browser."""

import re

from helpers import evidence

TASKS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "imdb": "IMDB", "cat-or-dog": "Cat or dog"}
INTRODUCTION = """\
# Results

The published measurements beside the literature's. Each row of ours comes from a file in `data/results/`, with its
seeds, versions and machine. Where a recipe chose another method or another size from seed to seed, it has several
rows. *Not verified*: the number comes from a later paper, or was not yet checked in its source. A weight that rounding
made zero counts among the “fewer weights”.
"""
CLAIM = """\
## How a claim works

A notebook states what should be true and hands over what it measured, for example:

```python
run.claim("12x-for-free", "12 times fewer weights cost at most 0.3 points", lost, at_most=0.003)
```

The outcome is computed, never typed. In quick and full, a claim that does not hold fails the run, after the results are
written. Claims about time need a latency ratio that clears a control: the same model timed against itself. If it does
not, the answer is "no measurable difference". Choices are made on validation data; the test split is touched once, and
each time is logged.
"""


def page() -> str:
    """Return the page in Markdown: the rows of `evidence.results_tables`, as HTML that the site's script can sort."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark").enable("table")
    parts = [INTRODUCTION, "A column's head sorts by it.", '<p class="filters" hidden></p>']
    for task, table, rest in re.findall(
        r"\*\*([\w-]+)\*\*\n\n((?:\|.*\n?)+)|(\S(?:.|\n)*)\Z", evidence.results_tables()
    ):
        if rest:
            parts += ["## How to read them", rest]
            continue
        rows = re.sub(r"<table>", f'<table class="sortable" data-task="{task}">', reader.render(table))
        parts += [f"## {TASKS.get(task, task)}", f'<div class="wide" tabindex="0">{rows.strip()}</div>']
    return "\n\n".join([*parts, CLAIM])
