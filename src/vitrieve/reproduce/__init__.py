"""The paper's tables and figures as plans of runs, and the pages about their results.

In reading order:
    published.py    the numbers that the paper published
    plans.py        tables and figures as rows, each a training that is measured
    stand_in.py     the same on data that is here
    run.py          the commands of a row, run one after the other
    analyze.py      a command: energy and similarities of an encoder, for figures 2, 3 and 5
    gradients.py    a command: directions of the gradient, for figure 4
    page.py         results beside the published numbers, as Markdown, SVG and JSON
"""
