"""Layouts: what the columns of a row mean. A new one is one new definition in ``preferences`` or ``single``.

A layout is a name, the types of its columns, and a function from a row to (prompt, responses):

    @preference(
        "stackexchange", "a question, the better and the worse answer", question=TEXT, response_j=TEXT, response_k=TEXT
    )
    def _(row):
        return pair(user(row["question"]), row["response_j"], row["response_k"])

Text that was written as prompt and completion stays text and is used as it is. What is question and
answer by nature becomes messages. Chosen and rejected get the scores 1 and 0 unless the row has better
ones; rankings keep their scores, higher is better, and equal scores are a tie.

The columns' types do the rest: ``detect`` guesses the layout from them, and a row that does not have
them becomes a Finding that says what is amiss.
"""

from prefopt.data.formats import preferences, single  # noqa: F401  (they fill LAYOUTS)
from prefopt.data.formats.layout import DEMONSTRATION, LAYOUTS, PREFERENCE, UNPAIRED, Layout, asks_only, detect, named
from prefopt.data.formats.single import ALONE

__all__ = ["ALONE", "DEMONSTRATION", "LAYOUTS", "PREFERENCE", "UNPAIRED", "Layout", "asks_only", "detect", "named"]
