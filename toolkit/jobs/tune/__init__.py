"""The search for recipe and settings by measuring on a target: study, trials, verdict, and the files it writes."""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.jobs.tune.options import SearchOptions as SearchOptions
    from toolkit.jobs.tune.proposal import Question as Question
    from toolkit.jobs.tune.search import tune as tune

__getattr__ = lazily(__name__, options="SearchOptions", proposal="Question", search="tune")
