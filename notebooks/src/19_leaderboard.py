# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [all]
# ---

# %% [markdown]
# # 19 · Everything on one Pareto front: what should I try first?
#
# Notebook after notebook has made networks smaller, and each had its own table. Here all of their models meet, one
# front for each task. Some questions can only be asked now: which technique bought most, what did it cost, would a small
# dense network have done as well, and which of our own statements rest on a single run?
#
# **You will be able to**
# - find the models that no other one beats, in five lines, and prove that you found them all;
# - say of what an interval is one: of other trainings, or of other images;
# - give ranks that do not pretend, with ties where there are ties;
# - read from a table what to try first, and know how far to believe it.
#
# **Before this**: notebook 01 (what is measured, and how). Of the others whichever you like: this one reads what they
# recorded.

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import itertools
import math
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from scipy.stats import binomtest

from helpers import evidence, exercises, show, statistics
from helpers.evidence import say

# %% tags=["plumbing"]
run = evidence.start("19_leaderboard", profile=PROFILE, seed=SEED)
show.style()
say(evidence.timetable("19_leaderboard"))

# %% [markdown]
# The question of the whole course, and so its answer comes first. For each goal and each task the picture shows the published model
# with the largest factor among those that lost at most one point of accuracy (one answer in a hundred). Dots are the same recipe with
# other seeds. **Predict** before you look: will the three goals have the same winners?

# %% tags=["plumbing", "answer"]
pd.set_option("display.max_colwidth", None)
pd.set_option("display.float_format", lambda x: f"{x:,.0f}" if abs(x) >= 1_000 else f"{x:.4g}")
IDLE = {"fewer multiplications": ("fewer bits", "weights pruned")}  # they change no number of multiplications


def short(number):
    """Three digits, and no powers of ten."""
    return f"{number:,.0f}" if number >= 1_000 else f"{number:.3g}"


def credited(technique, goal):
    """The parts of a technique that can have served a goal."""
    return " + ".join(part for part in technique.split(" + ") if part not in IDLE.get(goal, ()))


def others_of(paid, row, factor):
    """The factors of the networks that the same recipe made with other seeds."""
    same = (paid["task"] == row["task"]) & (paid["recipe"] == row["recipe"]) & (paid["model"] != row["model"])
    return sorted(paid[same][factor].dropna())


def silence(paid, task, factor):
    """Why a task has no answer for a goal."""
    known = paid[paid["task"] == task][factor].notna().any()
    if factor == "speed ×" and not known:
        return "the speed of its compressed models has not been measured yet"
    return "no model gains anything within a point"


official = evidence.runs(build=False)
official = evidence.bought(official[official["profile"] == "full"])
if len(official):
    answers = {goal: evidence.first_to_try(official, goal) for goal in evidence.GOALS}
    tasks = sorted(set(official["task"]), reverse=True)
    fig, axes = plt.subplots(len(answers), 1, figsize=(8, 5.4), sharex=True)
    for ax, (goal, chosen) in zip(axes, answers.items(), strict=True):
        factor, by_task = evidence.GOALS[goal], {row["task"]: row for row in chosen.to_dict("records")}
        for place, task in enumerate(tasks):
            if task not in by_task:
                ax.text(1.1, place, silence(official, task, factor), va="center", fontsize=9.5, style="italic")
                continue
            row = by_task[task]
            colour, others = show.COLOURS[0] if row["high"] <= 1 else "white", others_of(official, row, factor)
            ax.barh(place, row[factor], color=colour, edgecolor=show.COLOURS[0], height=0.6)
            ax.plot(others, [place] * len(others), "o", color=show.COLOURS[4], markersize=5)
            text = f"{short(row[factor])} ×: {credited(row['technique'], goal)}"
            ax.text(1.12 * max([row[factor], *others]), place, text, va="center", fontsize=9.5)
        ax.set(xscale="log", xlim=(1, 200_000), ylim=(-0.6, len(tasks) - 0.4), title=goal)
        ax.set_yticks(range(len(tasks)), tasks)
        ax.grid(False, axis="y")
    axes[-1].set_xlabel("times as small, as few, as fast as the dense network (log scale)")
    axes[-1].set_xticks([1, 10, 100, 1_000], ["1", "10", "100", "1,000"])
    axes[-1].xaxis.set_minor_locator(plt.NullLocator())
    edge = dict(edgecolor=show.COLOURS[0])
    marks = {
        "decided: it lost at most one point": plt.Rectangle((0, 0), 1, 1, facecolor=show.COLOURS[0], **edge),
        "not decided: it may have lost more": plt.Rectangle((0, 0), 1, 1, facecolor="white", **edge),
        "other seeds": plt.Line2D([], [], marker="o", linestyle="", color=show.COLOURS[4], markersize=5),
    }
    fig.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3, fontsize=10)
    parts = [part for g, c in answers.items() for each in c["technique"] for part in credited(each, g).split(" + ")]
    part, count = Counter(parts).most_common(1)[0]
    decided = sum((chosen["high"] <= 1).sum() for chosen in answers.values())
    title = f"“{part}” is part of {count} of {sum(map(len, answers.values()))} first answers; decided: {decided}"
    fig.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    table = pd.concat({g: c.set_index("task")[["model", evidence.GOALS[g], "points lost"]] for g, c in answers.items()})
    words = "; ".join(
        f"{g}: " + ", ".join(c["task"] + " by " + c["technique"] for _, c in a.iterrows()) for g, a in answers.items()
    )
    alt = f"For each goal and task the technique with the largest factor within a point. {words}."
    show.figure(fig, alt=alt, table=table.astype(object).where(table.notna(), "–"))
else:
    say("No full run with a compressed model is published, so there is no answer yet.")

# %% [markdown]
# `trials` is how many random tables the proof of section 3 tries. The board itself is read from the results files, whatever
# the profile.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(trials=50),
    quick=dict(trials=500),
    full=dict(trials=2_000),
)  # fmt: skip

# %% [markdown]
# ## 1. What should I try first?
#
# Where do these bars come from? Each notebook leaves what it measured in a results file. The picture reads the published full runs
# alone. From here on this page reads everything: your own runs where you have some, else the published ones, and quick ones
# where there is no full one. The cell repeats the picture's question for all of them.

# %%
runs = evidence.runs()
TASKS = sorted(set(runs["task"]))
paid = evidence.bought(runs)  # each compressed model against the dense one it came from
picks = {goal: evidence.first_to_try(paid, goal) for goal in evidence.GOALS}

# %% tags=["plumbing"]
if runs.empty:
    say("No notebook has recorded a model yet. Run some, then come back: most sections have nothing to show.")

# %% [markdown]
# Here are the rows, with what each model lost and on how many networks it stands (`n`). *Not decided* means that the interval of its
# loss reaches beyond one point. Where a row is not the bar's, it comes from your own runs, or from quick ones.

# %% tags=["plumbing"]
networks = {(task, row.model): row.networks for task in TASKS for row in evidence.board(runs, task).itertuples()}
for goal, chosen in picks.items():
    factor = evidence.GOALS[goal]
    chosen = chosen.assign(technique=[credited(each, goal) for each in chosen["technique"]])
    lines = []
    for row in chosen.to_dict("records"):
        others = ", ".join(map(short, others_of(paid, row, factor)))
        lines.append(
            f"- {row['task']}: **{row['technique']}** (`{row['model']}`, {factor} {short(row[factor])}, {row['points lost']:+.2f} points "
            f"lost, at most {row['high']:.2f} by the interval of {row['over']}, n = {networks[row['task'], row['model']]}, {row['profile']}"
            + (f"; with other seeds the same recipe gave {others})" if others else ")")
            + ("" if row["high"] <= 1 else ": not decided")
        )
    lines += [f"- {task}: {silence(paid, task, factor)}." for task in TASKS if task not in set(chosen["task"])]
    wins = chosen["technique"].value_counts()
    if wins.empty:
        lead = "nothing here helps without losing a point"
    elif len(wins) > 1 and wins.iloc[0] == wins.iloc[1]:
        lead = "each kind of network has an answer of its own"
    else:
        sure = f"decided: {sum(chosen['high'] <= 1)} of {len(chosen)} answers"
        lead = f"*{wins.index[0]}* leads in {wins.iloc[0]} of {len(TASKS)} tasks; {sure}"
    say(f"For **{goal}**, {lead}.\n\n" + "\n".join(lines))
run.record(
    "first_to_try", {goal: chosen[["task", "technique", "model"]].to_dict("records") for goal, chosen in picks.items()}
)

# %% [markdown]
# ## 2. What was recorded
#
# There is a file of results for each notebook, profile and seed. `evidence.runs` reads them all. Where a model has full results, its
# quick ones step back.

# %%
runs.groupby(["notebook", "profile", "source"]).agg(
    models=("model", "nunique"), seeds=("seed", "nunique")
).reset_index()

# %% [markdown]
# One row for each model comes next, and that is where a table begins to lie. Three ways to take a mean that stands for
# nothing:
#
# - A recipe that *chooses* (which score, how much to remove) may choose otherwise with another seed. The mean of three
#   different networks is the size of none. `board` splits them, by method and by size.
# - Two notebooks may give one name to two networks. Then both keep it, with the notebook's number.
# - Three runs that evaluate the *same* committed network have measured one network three times, not three.

# %%
boards = {task: evidence.board(runs, task) for task in TASKS}
everything = pd.concat(boards, names=["task"]).reset_index("task") if boards else runs.head(0).assign(n=0, networks=0)
split = sorted({row.recipe for row in everything.itertuples() if row.recipe != row.model})
repeated = [row.model for row in everything.itertuples() if row.networks < row.n]
spread = (everything["bytes_high"] / everything["bytes_low"]).max() if len(everything) else math.nan
averaged = sum(part["method"].nunique() > 1 for _, part in runs.groupby(["task", "model"]))

# %% tags=["plumbing"]
say(
    f"{len(everything)} models in {len(TASKS)} tasks. Split, because their seeds chose differently: "
    f"{', '.join(f'`{name}`' for name in split) or 'none'}. One network, measured by several runs: "
    f"{', '.join(f'`{name}`' for name in repeated) or 'none'}. "
    + (f"Within a row, the largest file is at most {spread:.3f} times the smallest." if spread == spread else "")
)

# %%
needed = ["n", "profile", "source", "notebook"]
missing = int(everything[needed].isna().any(axis=1).sum()) if len(everything) else 0

# %% tags=["plumbing"]
run.claim("rows-complete", "Rows without n, profile, source or notebook", missing, at_most=0)
run.claim("no-mixed-mean", "Rows that average different methods", averaged, at_most=0)

# %% [markdown]
# ## 3. Who beats whom
#
# Model A **dominates** B if it is at least as accurate, at most as large, and better in one of the two. Then nobody who
# cares for these two numbers needs B. What no other model dominates is the **Pareto front**. There is no best model on
# it: each is the best for somebody.
#
# %% tags=["plumbing"]
fig, ax = plt.subplots(figsize=(5.6, 2.9))
spots = {"A": (2, 3.0), "B": (4.2, 2.2), "C": (5.5, 4.2), "D": (1.2, 1.0), "E": (7.2, 3.6)}
ax.fill_between([2, 8.4], 0.2, 3.0, color=show.COLOURS[1], alpha=0.18, zorder=0)
ax.text(5.3, 0.55, "what A dominates: no smaller, no more accurate", fontsize=9.5, ha="center")
ax.plot([1.2, 2, 2, 5.5, 5.5, 8.4], [1.0, 1.0, 3.0, 3.0, 4.2, 4.2], color=show.COLOURS[2], linewidth=1.5, zorder=1)
for name, (x, y) in spots.items():
    on_front = name in "ACD"
    ax.plot(
        x,
        y,
        "o",
        markersize=9,
        color=show.COLOURS[0],
        markerfacecolor=show.COLOURS[0] if on_front else "white",
        zorder=3,
    )
    ax.text(x, y + 0.28, name, ha="center", fontsize=11)
ax.set(xlim=(0.6, 8.4), ylim=(0.2, 5), xlabel="bytes →", ylabel="accuracy →", xticks=[], yticks=[])
ax.set_title("Nothing is smaller and better than D, A or C")
show.figure(
    fig,
    alt="Five models, bytes against accuracy. D, A and C rise from left to right on a staircase, the front. B lies to the "
    "right of A and below it: A dominates B. E lies to the right of C and below it.",
)

# %% [markdown]
# Five lines: sort by size, and walk. Whoever is more accurate than all smaller ones stays.


# %%
def pareto(sizes, accuracies):
    """Return the places of the models that no other one dominates."""
    best, kept = {}, -math.inf
    for place in sorted(range(len(sizes)), key=lambda i: (sizes[i], -accuracies[i])):
        if accuracies[place] > kept or (sizes[place], accuracies[place]) in best.values():
            best[place], kept = (sizes[place], accuracies[place]), max(kept, accuracies[place])
    return sorted(best)


# %% [markdown]
# **Predict**: of 20 models with sizes and accuracies drawn at random, how many stand on the front? (It is less than you
# think, and it grows very slowly.)
#
# Is the walk right? The definition itself, all pairs, is the proof; twins are where such walks go wrong, so the random
# tables have many of them. And the helper, which takes any number of costs, must agree as well.


# %%
def by_definition(sizes, accuracies):
    """All pairs, word for word."""
    points = list(zip(sizes, accuracies, strict=True))

    def dominates(a, b):
        return a[1] >= b[1] and a[0] <= b[0] and (a[1] > b[1] or a[0] < b[0])

    return [i for i, b in enumerate(points) if not any(dominates(a, b) for a in points)]


random = np.random.default_rng(SEED)
different, lengths = 0, []
for trial in range(S.trials):
    steps = 5 if trial % 2 else 10**6  # few steps: many twins
    table = random.integers(0, steps, (2, 20)).tolist()
    fronts = [pareto(*table), by_definition(*table), list(np.flatnonzero(evidence.front(table[1], table[0])))]
    different += len({tuple(map(int, found)) for found in fronts}) > 1
    lengths += [len(fronts[0])] * (trial % 2 == 0)

# %% tags=["plumbing"]
run.claim("same-front", f"Tables on which walk, definition and helper differ, of {S.trials}", different, at_most=0)
expected = sum(1 / k for k in range(1, 21))
say(
    f"Of 20 random models {np.mean(lengths):.1f} stand on the front, on average. The theory says 1 + 1/2 + … + 1/20 = "
    f"{expected:.1f}: going from small to large, the k-th is the most accurate so far with probability 1/k. So to stand "
    "on a front of few models is no great honour."
)

# %% [markdown]
# ## 4. An interval of what?
#
# A network reads 9,941 of 10,000 digits. Two questions, two intervals, and they are mixed up all the time:
#
# - **Other images.** This network, 10,000 *other* digits: how many? It is a coin thrown $n$ times, with $k$ heads. The
#   interval is that of a share, after **Wilson** (1927):
#
# $$\frac{1}{1 + z^2/n}\left(p + \frac{z^2}{2n} \pm z\sqrt{\frac{p(1-p)}{n} + \frac{z^2}{4n^2}}\right), \qquad p = k/n,\; z = 1.96.$$
#
# - **Another training.** Another seed, the *same* digits: how many? For that you must train again. The interval is
#   Student's, from the mean and the spread over the seeds.
#
# What the one interval is for, the other leaves out. **Clopper and Pearson**'s interval (1934) answers the first question, too: it never promises
# too much, and is wider for it.


# %%
def wilson(correct, count, z=1.959964):
    p, shrink = correct / count, 1 + z**2 / count
    middle = (p + z**2 / (2 * count)) / shrink
    reach = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2)) / shrink
    return middle - reach, middle + reach


gap = 0.0
for correct, count in itertools.product((0, 1, 50, 97, 100), (100, 2_500, 10_000)):
    theirs = binomtest(correct, count).proportion_ci(method="wilson")
    helper = statistics.image_interval(correct / count, count)
    ours = wilson(correct, count)
    gap = max(gap, *(abs(a - b) for a, b in zip(ours + ours, [*theirs, *helper[:2]], strict=True)))

# %% tags=["plumbing"]
run.claim("wilson", "Largest difference between the cell's interval, SciPy's and the helper's", gap, at_most=1e-6)

# %% [markdown]
# Both for every model that several seeds have really trained, in points to each side of the mean. **Predict** which is
# longer.

# %%
rows = []
for row in everything.itertuples():
    accuracies = runs[(runs["task"] == row.task) & (runs["model"] == row.model)]["accuracy"].tolist()
    if row.networks > 1 and row.images == row.images:
        exact = binomtest(round(row.accuracy * row.images), int(row.images)).proportion_ci(method="exact")
        seeds, images = statistics.seed_interval(accuracies), statistics.image_interval(row.accuracy, int(row.images))
        rows.append({"task": row.task, "model": row.model, "n": row.n, "images": int(row.images),
                     "± other trainings": 50 * (seeds.high - seeds.low), "± other images": 50 * (images.high - images.low),
                     "± the same, Clopper-Pearson": 50 * (exact.high - exact.low)})  # fmt: skip
two = pd.DataFrame(rows)

# %% tags=["plumbing"]
if len(two):
    longer = int((two["± other trainings"] > two["± other images"]).sum())
    twice = two[two["n"] == 2]
    say(
        f"That of other trainings is the longer one for {longer} of {len(two)} models. "
        + (
            f"With two seeds it is up to {twice['± other trainings'].max():.1f} points to each side: "
            if len(twice)
            else ""
        )
        + ("two numbers say very little about a third. " if len(twice) else "")
        + "On the board, the interval is that of trainings where networks differ, else that of images; the column *of* "
        "says which."
    )
two.round(2)

# %% [markdown]
# ## 5. Ranks that do not pretend
#
# A beats B if the interval of A's lead over B lies above zero. Paired by seed, where both have seeds; else it is one
# network against another, and the interval is made of both Wilson intervals (Newcombe 1998). That one is too careful: both
# answered the *same* images, so much of the chance is shared. But the results files do not say who answered what, and a
# tie too many is better than a winner too many.
#
# Whoever cannot be told apart shares a **rank**, even if they are tied only through a third. A new rank begins where every
# model above beats every model from there on. It counts the models above it: after two firsts comes a third.


# %%
def shown(frame):
    """The board of a task as a reader sees it."""
    table = pd.DataFrame({"rank": frame["rank"], "beaten by": frame["beaten_by"]})
    table["model"] = frame["model"]
    table["accuracy (%), 95 %"] = [
        f"{100 * a:.2f}" + (f" ({100 * low:.2f} to {100 * high:.2f})" if low == low else "")
        for a, low, high in zip(frame["accuracy"], frame["low"], frame["high"], strict=True)
    ]
    table["of"] = frame["over"]
    table["n"] = [f"{r.networks}" + f" of {r.of_runs}" * (r.n < r.of_runs) for r in frame.itertuples()]
    table["bytes"] = ["–" if b != b else f"{b:,.0f}" for b in frame["bytes"]]
    table["MACs"] = frame["macs"].map("{:,.0f}".format)
    table["front"] = ["bytes " * row.front_bytes + "MACs" * row.front_macs for row in frame.itertuples()]
    table["from"] = frame["notebook"].str[:2] + ", " + frame["profile"] + ", " + frame["source"]
    return table.set_index("rank")


# %%
ranked = {task: evidence.ranked(boards[task], runs[runs["task"] == task]) for task in TASKS}

# %% tags=["plumbing"]
for task, frame in ranked.items():
    pairs = len(frame) * (len(frame) - 1) // 2
    by_chance = 0.05 * pairs  # an interval of 95 % misses 0 on either side, and the better one stands above
    say(
        f"**{task}**: {len(frame)} models, {frame['rank'].nunique()} rank{'s' if frame['rank'].nunique() > 1 else ''}. "
        f"{int(frame['beaten_by'].sum())} of {pairs} pairs are decided; at 95 %, up to {by_chance:.1f} of the pairs would "
        "seem so if all models were alike."
    )
    display(shown(frame))

# %% [markdown]
# Long first ranks are no failure of the table. They say what the measurements can carry: a handful of seeds, some
# thousand images (or reviews, where the table says images). The column `n` counts networks: three runs that evaluated one committed network
# are n = 1. "1 of 3" means that only one of the notebook's runs has that model, because the recipe chose another one in the others; such a
# row was picked by chance.
#
# ## 6. The fronts
#
# Accuracy against bytes: the file that was written, read back and verified. The axis of accuracy is stretched towards
# 100 %, by the logarithm of the error: from 99.0 to 99.5 is as much as from 90 to 95, half of the mistakes. Filled marks
# are dense networks, hollow ones compressed, and a small mark has only quick results. A vertical line is the 95 % interval; one
# from two seeds may leave the picture. Models without a file are not there.


# %% tags=["plumbing"]
def figure(task, cost, label):
    """One task's board as a figure: every model with its interval, the front as a line."""
    frame = ranked[task][ranked[task][cost].notna()]
    frame = frame.sort_values(cost)
    error = (100 - 100 * frame["accuracy"]).clip(lower=0.01)
    low, high = ((100 - 100 * frame[end]).clip(lower=0.01) for end in ("high", "low"))
    fig, ax = plt.subplots(figsize=(6.6, 3.6))
    for place, row in enumerate(frame.itertuples()):
        colour = show.COLOURS[0] if row.dense else show.COLOURS[4]
        ax.plot(getattr(row, cost), error.iloc[place], "o" if row.dense else "s", color=colour, zorder=3,
                markerfacecolor=colour if row.dense else "white", markersize=7 if row.profile == "full" else 4)  # fmt: skip
        x, y = getattr(row, cost), error.iloc[place]
        ax.plot([0.95 * x, 1.05 * x], [y, y], "-", alpha=0)  # not seen, but names keep off lines, and so off this mark
        if row.over:
            ax.plot([x, x], [low.iloc[place], high.iloc[place]], "-", color=colour, linewidth=1, alpha=0.6)
    best = frame[frame[f"front_{cost}"]]
    stairs = np.repeat(best[cost], 2)[1:], np.repeat(error[best.index], 2)[:-1]
    ax.plot(*stairs, color=show.COLOURS[2], linewidth=1.5, zorder=1)
    ax.set(xscale="log", yscale="log", xlabel=label, ylabel="test accuracy (%)")
    # An interval from two seeds would squeeze all else into a corner: it is cut off where it leaves the picture.
    ax.set_ylim(max(low.min(), error.min() / 1.5) / 1.3, min(high.max(), error.max() * 1.5) * 1.3)
    ax.set_xlim(frame[cost].min() / 6, frame[cost].max() * 4)  # room for names on either side
    ax.invert_yaxis()
    inside = [
        e
        for e in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70)
        if ax.get_ylim()[1] < e < ax.get_ylim()[0]
    ]
    ax.set_yticks(inside, [f"{100 - e:g}" for e in inside])
    ax.yaxis.set_minor_formatter("")
    dense = int(best["dense"].sum())
    ax.set_title(f"{task}: {len(best)} of {len(frame)} models on the front, {dense or 'none'} of them dense")
    homeless = show.label_points(
        ax, best[cost], error[best.index], best["model"]
    )  # the front has names, the tables all
    table = frame.set_index("model")[["accuracy", "low", "high", "bytes", "bytes_low", "bytes_high", "macs"]]
    words = show.in_words((100 * best.set_index("model")[["accuracy"]]).round(2), "{:.2f} %")
    show.figure(fig, alt=f"Accuracy against {label} of {len(frame)} models. On the front, {words}", table=table)
    return homeless


# %%
unlabelled = []
for task in TASKS:
    if ranked[task]["bytes"].notna().any():
        unlabelled += figure(task, "bytes", "bytes of the file (log scale)")

# %% [markdown]
# The same against **MACs**, the multiplications of one answer. **Predict** for each task which models leave the front, and
# which come onto it. (A weight of four bits is multiplied like any other one.)

# %% tags=["plumbing"]
for task in TASKS:
    if ranked[task]["front_macs"].equals(ranked[task]["front_bytes"]):
        say(f"{task}: the same models stand on both fronts.")
    else:
        unlabelled += figure(task, "macs", "MACs for one input (log scale)")
if unlabelled:
    say(f"No room for the names of {', '.join(unlabelled)}; the tables have them.")

# %%
lines = []
for task in TASKS:
    frame = ranked[task]
    only_bytes = frame[frame["front_bytes"] & ~frame["front_macs"]]["model"].tolist()
    only_macs = frame[frame["front_macs"] & ~frame["front_bytes"]]["model"].tolist()
    lines.append(
        f"- {task}: on the front for bytes only: {', '.join(only_bytes) or 'none'}; for MACs only: {', '.join(only_macs) or 'none'}."
    )

# %% tags=["plumbing"]
say("\n".join(lines))

# %% [markdown]
# ### Do the small dense networks win?
#
# The cheapest alternative to compressing a network is to train a smaller one. If a small dense network is at least as accurate
# and costs no more, the compression was for nothing, in this currency. A network's own base does not count here: it is what
# was compressed. **Predict**: how often?


# %%
def beaten_by_small(task, cost):
    """Each compressed model of a task that a small dense network dominates, with the first such network."""
    part = runs[runs["task"] == task].drop_duplicates("model").set_index("model")
    small = set(part.index[part["technique"] == "a thin dense net"])
    by = {
        model: others
        for model, others in evidence.dominated_by(boards[task], cost).items()
        if not part.loc[model, "dense"]
    }
    base = part["base"]
    losers = {model: [o for o in others if o in small and o != base[model]] for model, others in by.items()}
    return sorted(small), len(by), {model: found[0] for model, found in losers.items() if found}


# %% tags=["plumbing"]
lines, beaten, compared = [], 0, 0
for task, (cost, name) in itertools.product(TASKS, (("bytes", "bytes"), ("macs", "MACs"))):
    small, count, losers = beaten_by_small(task, cost)
    if not small:
        lines.append(f"- {task}, {name}: no small dense network stands on the board.")
        continue
    beaten, compared = beaten + len(losers), compared + count
    which = "".join(f"; `{model}` by `{winner}`" for model, winner in losers.items())
    lines.append(f"- {task}, {name}: {len(losers)} of {count} compressed models are dominated by one of "
                 f"{', '.join(f'`{each}`' for each in small)}{which}.")  # fmt: skip
run.record("dominated", {"beaten": beaten, "compressed": compared})
say("\n".join([*lines, "", "By the means alone: where the ranks are shared, such a victory is none."]))

# %% [markdown]
# ## 7. Time
#
# A latency is a ratio: of the median of something else, timed in the same minutes, to this one's. So each row below has
# its own *against*. Ratios against different things must not be compared, and neither may runtimes be mixed: a network
# that is 1.5 times faster in eager PyTorch may be 2 times faster in ONNX Runtime, or not at all. In the figure each is measured
# against its base, in the same runtime; at the top are the few that were measured against themselves, in eager PyTorch. What was
# timed in both runtimes is drawn with ONNX Runtime's ratio. "Faster" means that the interval clears the A/A control, in each of
# the runs.


# %%
def folded(table, title):
    """Show a long table behind its title, to be opened by whoever wants it."""
    rows = f"<details><summary>{title}</summary>{table.to_html(border=0)}</details>"
    display({"text/html": rows, "text/plain": title}, raw=True)


times = evidence.latencies(runs)
single = times[times["batch"] == 1]
folded(times.round(2).drop(columns="technique").rename(columns={"n": "runs"}), f"All {len(times)} latency ratios")

# %% tags=["plumbing"]
if len(single):
    in_onnx = set(single.loc[single["runtime"] == "onnxruntime", "model"])
    single = single[(single["runtime"] == "onnxruntime") | ~single["model"].isin(in_onnx)]
    fig, ax = plt.subplots(figsize=(6.2, 1.3 + 0.21 * len(single)))
    single = single.assign(same=single["technique"] == "another runtime")
    single = single.sort_values(["same", "task", "runtime", "ratio"], ignore_index=True)
    for place, row in enumerate(single.itertuples()):
        styles = {"onnxruntime": (show.COLOURS[0], "o"), "eager": (show.COLOURS[1], "s")}
        colour, marker = styles.get(row.runtime, (show.COLOURS[2], "^"))
        ax.hlines(place, row.low, row.high, color=colour, linewidth=2)
        name = {"onnxruntime": "ONNX Runtime"}.get(row.runtime, row.runtime)
        is_new = name not in ax.get_legend_handles_labels()[1]
        ax.plot(row.ratio, place, marker, color=colour, label=name if is_new else None)
    ax.axvline(1, color="black", linewidth=1)
    ax.set_yticks(
        range(len(single)),
        [row.model + " / itself, eager" * row.same for row in single.itertuples()],
        fontsize=9,
    )
    smaller = single[~single["same"]]
    faster = int(smaller["verdicts"].str.fullmatch(r"\d+ × faster").sum())
    ax.set(xscale="log", xlabel="times as fast (log scale)")
    ax.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    ax.xaxis.set_minor_formatter("")
    ax.grid(False, axis="y")
    fig.legend(loc="outside lower center", ncols=2)
    title = f"{faster} of {len(smaller)} compressed or thin networks are faster"
    fig.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    table = single.set_index("model")[["runtime", "against", "ratio", "low", "high", "verdicts"]]
    show.figure(fig, alt=f"Speed ratios with intervals. {show.in_words(table[['ratio']], '{:.2f}')}", table=table)

# %% [markdown]
# ## 8. What each technique bought
#
# Each compressed model against the dense one it came from, in the same run: how many times smaller the file, how many
# times fewer multiplications, how many times faster, and how many points of accuracy it lost. **Predict** the order of the
# techniques, by bytes and by time. Is it the same?

# %%
factors = list(evidence.GOALS.values())
table = paid.assign(n=[networks[row.task, row.model] for row in paid.itertuples()])
table = table.sort_values(["technique", "task", "model"])[
    ["technique", "task", "model", "profile", "n", *factors, "clock", "points lost", "low", "high", "over"]
]
folded(table.round(2).set_index("technique"), f"All {len(table)} compressed models")

# %% [markdown]
# "low" and "high" are the ends of the 95 % interval of the points lost; below zero nothing was lost. A mean over tasks would be
# the mean of different questions, so there is none. Task by task, how far did each technique get, from its smallest factor to
# its largest? Full and quick rows stand apart: a quick one compresses a smaller network, or for a shorter time. Of the speeds only those
# in ONNX Runtime count, against the dense network there:


# %%
def reach(values):
    known = values.dropna()
    if known.empty:
        return "–"
    ends = sorted({short(known.min()), short(known.max())}, key=lambda text: float(text.replace(",", "")))
    return " to ".join(ends)


same_clock = paid.assign(**{"speed ×": paid["speed ×"].where(paid["clock"].str.startswith("onnxruntime"))})
by_technique = same_clock.groupby(["task", "technique", "profile"]).agg(
    models=("model", "size"), **{column: (column, reach) for column in [*factors, "points lost"]}
)
by_technique

# %%
quiet = paid[paid["technique"].isin(["weights pruned", "weights pruned + a teacher"]) & (paid["profile"] == "full")]
clocks = times[times["model"].isin(quiet["model"])]

# %% tags=["plumbing"]
if len(clocks):
    verdicts = clocks["verdicts"].str.replace(r"\d+ × ", "", regex=True).value_counts()
    say(
        f"Pruned weights, full runs: the file {quiet['file ÷'].min():.3g} to {quiet['file ÷'].max():.3g} times smaller; by the clock, "
        + ", ".join(f"{said} ({count} of {len(clocks)})" for said, count in verdicts.items())
        + ". A zero is multiplied like any other number."
    )
run.record("by_technique", same_clock[["task", "technique", "model", *factors, "points lost"]].fillna(-1))

# %% [markdown]
# ## 9. Beside the literature
#
# Papers count in two units. A **weight ratio** divides numbers of weights; a **file ratio** divides bytes. A pruned weight
# must be found again, so a hundred times fewer weights are never a file a hundred times smaller, unless the rest takes
# fewer bits. Put both in one column, and you compare nothing with nothing. So here are two tables. "Read" says whether the
# number was checked in the paper itself.


# %%
def beside(task, unit):
    """Our models and the literature's, in one unit, the largest ratio first."""
    ours = boards[task][(boards[task][unit] > 1.05)]
    rows = [{"model": row.model, "method": row.method, "ratio": getattr(row, unit), "accuracy (%)": 100 * row.accuracy,
             "source": f"here, n = {row.networks}", "read": ""} for row in ours.itertuples()]  # fmt: skip
    known = evidence.literature(task)
    for row in known.to_dict("records"):
        if row.get(unit) == row.get(unit) and row.get(unit):
            rows.append({"model": row["model"], "method": row["method"], "ratio": row[unit], "accuracy (%)": 100 * row["accuracy"],
                         "source": row["source"], "read": "yes" if row["seen"] else "not yet"})  # fmt: skip
    columns = ["model", "method", "ratio", "accuracy (%)", "source", "read"]
    return pd.DataFrame(rows, columns=columns).sort_values("ratio", ascending=False).round(2).set_index("model")


# %% tags=["plumbing"]
if "mnist" in TASKS:
    say("**By weights**")
    display(beside("mnist", "weights_ratio"))
    say("**By bytes of the file**")
    display(beside("mnist", "file_ratio"))

# %% [markdown]
# ## 10. How far to believe a winner
#
# The picture at the top picked winners. Believe them with care. We picked the winners by the very test images on which they won, so their losses look smaller than
# they are: the **winner's curse**. It is small where one model is far ahead, and it is everything where the first rank is
# long. And a factor belongs to its base: who starts from a bloated network divides by more.
#
# How much do winners gain by being picked? Here are ten models that are all equally good, by construction, and 2,000
# images. Pick the best on these images, then ask for others.

# %%
random = np.random.default_rng(SEED)
first, second = random.binomial(2_000, 0.83, (2, 5_000, 10)) / 2_000
winner = first.argmax(axis=1)
curse = 100 * (first.max(axis=1) - second[np.arange(5_000), winner]).mean()

# %% tags=["plumbing"]
run.claim("winners-curse", "Points that the best of ten equal models loses on other images", curse, at_least=1.0)
say(f"The best of ten looks {curse:.1f} points better than it is, and nothing at all distinguishes it.")

# %% [markdown]
# ## 11. What is not decided
#
# The course's rule: a claim over seeds needs three of them. Which of the notebooks' claims have fewer?

# %%
claims = evidence.claims_over_seeds()
open_ones = claims[claims["outcome"] == "undecided"]
failed = claims[claims["outcome"] == "does not hold"]
alone = everything[everything["networks"] == 1]

# %% tags=["plumbing"]
say(
    f"{len(open_ones)} of {len(claims)} claims over seeds are undecided, from {open_ones['notebook'].nunique()} notebooks; "
    f"{len(failed)} do not hold. On the board, {len(alone)} of {len(everything)} rows are of a single network: of their "
    "recipe's spread nothing is known."
)
run.claim("none-broken", "Published claims over three seeds or more that do not hold", len(failed), at_most=0)

# %%
folded(
    claims.assign(mean=claims["mean"].map("{:,.4g}".format)).set_index("notebook"),
    f"All {len(claims)} claims over seeds",
)
display(open_ones[["notebook", "claim", "text", "n"]].set_index("notebook"))

# %% [markdown]
# And where does each row come from? The commit (older runs name the SHA-256 of the notebook's source), the machine, and how
# many threads PyTorch had. A ‡ says that its seeds are not of one source: such a mean is one of two programs.

# %%
wrong = claims[claims["erratum"] != ""]

# %% tags=["plumbing"]
say(
    f"{int(everything['origin'].str.endswith('‡').sum())} of {len(everything)} rows are of several sources. Of "
    f"{len(wrong)} claims something is known to be wrong; the table above says what."
)
sources = everything.assign(n=everything["networks"]).set_index("model")
folded(sources[["notebook", "profile", "n", "origin"]], "Where each row comes from")

# %% [markdown]
# ## 12. Exercises
#
# **19.1 · Warm-up: dominated?** A model is a pair, accuracy and bytes. Write section 3's definition in one line.


# %%
def dominates(a, b):
    """Return whether model a dominates model b; each is (accuracy, bytes)."""
    ### BEGIN SOLUTION
    return a[0] >= b[0] and a[1] <= b[1] and a != b
    ### END SOLUTION


exercises.check("19.1", dominates)

# %% [markdown]
# **19.2 · Shared ranks.** Write section 5's rule. `names` come best mean first; `lead(a, b)`, for an a that stands above
# b, gives the two ends of the interval of a's lead. Return one rank for each name.


# %%
def shared_ranks(names, lead):
    """Return the ranks of `names`, a list of whole numbers: any two that cannot be told apart share one."""
    ### BEGIN SOLUTION
    ranks = []
    for place in range(len(names)):
        above, rest = names[:place], names[place:]
        begins = all(lead(a, b)[0] > 0 for a in above for b in rest)
        ranks.append(place + 1 if begins else ranks[-1])
    return ranks
    ### END SOLUTION


exercises.check("19.2", shared_ranks)

# %% [markdown]
# **19.3 · Predict: a front of a hundred.** Of 20 random models about three and a half stood on the front. How many of 100, on average?
# Section 3 has all that is needed.


# %%
def front_of_a_hundred():
    """Return how many of 100 random models stand on the front, on average."""
    ### BEGIN SOLUTION
    return sum(1 / k for k in range(1, 101))  # the k-th smallest is the most accurate so far with probability 1/k
    ### END SOLUTION


# %%
hundreds = [random.integers(0, 10**6, (2, 100)).tolist() for _ in range(S.trials)]
average = float(np.mean([len(pareto(*table)) for table in hundreds]))
exercises.check("19.3", front_of_a_hundred, measured=average)

# %% [markdown]
# **19.4 · Networks, not runs.** Three runs of a notebook recorded a model. If it is a committed network that each run evaluated again,
# one network was measured three times; if each run trained it, there are three. Return how many there are. `recorded` has
# a row for each run: a tuple of accuracy, bytes and number of weights.


# %%
def count_networks(recorded):
    """Return how many networks stand behind the runs: one if all rows are the same, else as many as there are rows."""
    ### BEGIN SOLUTION
    return 1 if len(set(recorded)) == 1 else len(recorded)
    ### END SOLUTION


exercises.check("19.4", count_networks)

# %% [markdown]
# **19.5 · Open: an advice.** Somebody has a photo classifier on a phone, half a megabyte to spend, and says that it must be "as fast as
# possible, and not worse". Write five sentences: what you would try first, from which rows of this page, against which base,
# how sure you are, and what you would measure on the phone before you believe any of it.

# %% [markdown]
# ## What was measured

# %% tags=["plumbing"]
say(f"{len(everything)} models from {runs['notebook'].nunique()} notebooks, in {len(TASKS)} tasks.")
run.finish()

# %% [markdown]
# ## What to remember
#
# - A front needs two numbers that were measured alike: the file that was written, the images that were not chosen on.
#   <!-- claims: same-front -->
# - Ask of each interval what it is of. Other trainings and other images are two questions. <!-- claims: wilson -->
# - If the interval of the difference holds zero, share the rank. <!-- by construction -->
# - A mean of three different networks is the size of none. <!-- claims: no-mixed-mean -->
# - The one picked from a table is not as good as it looks. Choose on validation, and say from how many.
#   <!-- claims: winners-curse -->
# - Bytes, multiplications and milliseconds are three goals. Say first which one is yours. <!-- by construction -->

# %% [markdown]
# ## What to read
#
# - Blalock et al. 2020, *What is the State of Neural Network Pruning?*: 81 papers, and why they cannot be compared.
# - Wilson 1927, *Probable Inference, the Law of Succession, and Statistical Inference*. Clopper and Pearson 1934.
# - Newcombe 1998, *Interval Estimation for the Difference Between Independent Proportions*.
# - Bouthillier et al. 2021, *Accounting for Variance in Machine Learning Benchmarks*.
#
# **Next**: in notebook 20 the table is closed, and you build a model yourself.
